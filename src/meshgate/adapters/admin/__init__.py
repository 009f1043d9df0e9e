"""The admin address: a small HTTP server and what it shows. It knows core's types, not Consul, not the relay."""
