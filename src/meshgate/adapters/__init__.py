"""One outside thing each: Consul, the relay's sockets, the admin address. None of them knows another."""
