# What a meshgate mesh gateway needs of the ACL system of Consul Enterprise, with admin partitions and namespaces. To
# save and apply it, in the partition "default" of the primary datacenter, with a token that may manage ACLs:
#
#   $command > $label.hcl
#   consul acl policy create -name $label -rules @$label.hcl
#   consul acl token create -description $label -policy-name $label
#
# The SecretID that this prints is the gateway's token (--token-file). It has to be a global one (not -local), of the
# partition "default": from there alone rules for other partitions are possible.

# Which other partitions there are.
operator = "read"

partition_prefix "" {
  # Cluster peering: which clusters are peered, and which services are exported.
  peering = "read"
  mesh    = "read"

  # The name of its own datacenter, from the local agent.
  agent_prefix "" {
    policy = "read"
  }

  # Its own registration. For a gateway of one partition this may stand in partition "its-name" alone.
  namespace "default" {
    service "$name" {
      policy = "write"
    }
  }

  # The services of its own partition, and the gateways of the others, with their nodes.
  namespace_prefix "" {
    service_prefix "" {
      policy = "read"
    }

    node_prefix "" {
      policy = "read"
    }
  }
}
