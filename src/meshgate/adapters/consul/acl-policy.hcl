# What a meshgate mesh gateway needs of Consul's ACL system, and no more. To save and apply it, in the primary
# datacenter, with a token that may manage ACLs:
#
#   $command > $label.hcl
#   consul acl policy create -name $label -rules @$label.hcl
#   consul acl token create -description $label -policy-name $label
#
# The SecretID that this prints is the gateway's token (--token-file). It has to be a global one (not -local): the
# gateway asks each other datacenter for its gateways, and that datacenter has to know the token.

# Its own registration.
service "$name" {
  policy = "write"
}

# The services that it routes to, their sidecars and resolvers, and the gateways of other datacenters. A narrower rule
# works as well; what it leaves out has no route.
service_prefix "" {
  policy = "read"
}

# The addresses and the health of the nodes that these run on.
node_prefix "" {
  policy = "read"
}

# Cluster peering: which clusters are peered, and which services are exported to them. Only Consul 1.13 and later knows
# these two; without peering they can be left out.
peering = "read"
mesh    = "read"

# The name of its own datacenter, from the local agent.
agent_prefix "" {
  policy = "read"
}
