# What this cluster opens to peered clusters and, in Consul Enterprise, to other admin partitions of its datacenter.
#
#   consul config write exported-services.hcl
#
# There is one entry for a partition; in the community edition its name is "default". A gateway takes it up at once.
# Services for peers need protocol tcp (see peering.md): http, http2 and grpc would have to be decrypted by the gateway.

Kind = "exported-services"
Name = "default"

Services = [
  {
    Name = "web"
    Consumers = [
      # The name that this cluster gave the peer when it made the peering token.
      { Peer = "eu" },
    ]
  },
  {
    Name = "db"
    Consumers = [
      { Peer = "eu" },
      { Peer = "ap" },
    ]
  },
]
