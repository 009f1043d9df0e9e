datacenter = "dc1"
bind_addr  = "172.28.7.11"
