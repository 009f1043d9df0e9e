# For all services: calls to other datacenters go through a gateway of the caller's own datacenter.
#
#   consul config write proxy-defaults.hcl
Kind = "proxy-defaults"
Name = "global"

MeshGateway {
  Mode = "local"
}

# Gateways take these from here, while running: the time for a connection to an endpoint, and TCP keepalive.
Config {
  connect_timeout_ms                           = 5000
  envoy_gateway_remote_tcp_enable_keepalive    = true
  envoy_gateway_remote_tcp_keepalive_time      = 60
  envoy_gateway_remote_tcp_keepalive_interval  = 15
  envoy_gateway_remote_tcp_keepalive_probes    = 3
}
