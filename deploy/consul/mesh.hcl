# Consul 1.10 and newer. Sidecars reach services of the mesh alone; with cluster peering the servers speak with each
# other through the gateways, too.
#
#   consul config write mesh.hcl
Kind = "mesh"

TransparentProxy {
  MeshDestinationsOnly = true
}

Peering {
  PeerThroughMeshGateways = true
}
