# The registration of a gateway as a file of the agent, for `meshgate run --no-register`:
#
#   consul services register service-definition.hcl
#
# meshgate itself registers the same when it is left to do it.
service {
  name    = "mesh-gateway"
  id      = "mesh-gateway"
  kind    = "mesh-gateway"
  address = "10.0.0.5"
  port    = 8443

  tagged_addresses {
    lan {
      address = "10.0.0.5"
      port    = 8443
    }
    wan {
      address = "203.0.113.5"
      port    = 8443
    }
  }

  check {
    name                              = "Mesh Gateway Listening"
    tcp                               = "10.0.0.5:8443"
    interval                          = "10s"
    deregister_critical_service_after = "6h"
  }
}
