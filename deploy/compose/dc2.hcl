datacenter     = "dc2"
bind_addr      = "172.28.7.21"
retry_join_wan = ["172.28.7.11"]
