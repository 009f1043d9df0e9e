# The client agent beside each gateway. Names and servers of your own datacenter go here.
datacenter = "dc1"
data_dir   = "/consul/data"
retry_join = ["consul-server.consul.svc"]
# Only the gateway in the same pod asks it.
client_addr          = "127.0.0.1"
leave_on_terminate   = true
disable_update_check = true
connect {
  enabled = true
}
acl {
  enabled = true
}
