primary_datacenter = "dc1"
server             = true
bootstrap_expect   = 1
data_dir           = "/consul/data"
client_addr        = "0.0.0.0"
ui_config {
  enabled = true
}
connect {
  enabled = true
}
acl {
  enabled                  = true
  default_policy           = "deny"
  enable_token_replication = true
  tokens {
    initial_management = "00000000-0000-4000-8000-000000000001"
    agent              = "00000000-0000-4000-8000-000000000001"
    replication        = "00000000-0000-4000-8000-000000000001"
  }
}
