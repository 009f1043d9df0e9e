# meshgate as a Nomad job: one gateway on each of two clients, beside their Consul agents.
#
#   nomad var put nomad/jobs/meshgate token=<SecretID of the policy in deploy/consul/acl-policy.hcl>
#   nomad job run -var image=registry.example/meshgate:1 meshgate.nomad.hcl
#
# Ports are static: other datacenters dial the gateway at the client's address. A stop or an update drains each gateway,
# one after the other; kill_timeout has to stay above MESHGATE_DRAIN_TIMEOUT.

variable "image" {
  type        = string
  description = "The image of deploy/docker/Dockerfile, pushed to a registry of yours."
}

variable "gateways" {
  type        = number
  default     = 2
  description = "How many, each on a client of its own."
}

variable "wan_interface" {
  type        = string
  default     = ""
  description = "The host network whose address other datacenters dial; empty: that of the client."
}

job "meshgate" {
  type = "service"

  constraint {
    operator = "distinct_hosts"
    value    = "true"
  }

  update {
    max_parallel     = 1
    health_check     = "checks"
    min_healthy_time = "10s"
    healthy_deadline = "3m"
    auto_revert      = true
  }

  group "gateway" {
    count = var.gateways

    network {
      mode = "host"

      port "mesh" {
        static       = 8443
        host_network = var.wan_interface == "" ? "default" : var.wan_interface
      }

      port "admin" {
        static = 19000
      }
    }

    # For Prometheus and for the rollout. The gateway registers itself as mesh-gateway, with its kind, which Nomad's
    # service block could not say.
    service {
      name         = "meshgate-admin"
      port         = "admin"
      address_mode = "host"
      tags         = ["prometheus"]

      check {
        type     = "http"
        path     = "/readyz"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "meshgate" {
      driver       = "docker"
      kill_signal  = "SIGTERM"
      kill_timeout = "45s"

      config {
        image           = var.image
        network_mode    = "host"
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
      }

      template {
        destination = "secrets/token"
        perms       = "0444"
        data        = "{{ with nomadVar \"nomad/jobs/meshgate\" }}{{ .token }}{{ end }}"
        # Read again by meshgate itself.
        change_mode = "noop"
      }

      env {
        # The agent of the client; its HTTP address is on loopback unless client_addr says otherwise.
        CONSUL_HTTP_ADDR       = "127.0.0.1:8500"
        CONSUL_HTTP_TOKEN_FILE = "${NOMAD_SECRETS_DIR}/token"
        MESHGATE_PROXY_ID      = "mesh-gateway-${NOMAD_ALLOC_INDEX}"
        MESHGATE_ADDRESS       = "${attr.unique.network.ip-address}:${NOMAD_PORT_mesh}"
        MESHGATE_WAN_ADDRESS   = "${NOMAD_ADDR_mesh}"
        MESHGATE_ADMIN_BIND    = "${NOMAD_ADDR_admin}"
        MESHGATE_STATE_DIR     = "${NOMAD_ALLOC_DIR}/data/meshgate"
        MESHGATE_LOG_JSON      = "true"
      }

      resources {
        cpu        = 1000
        memory     = 256
        memory_max = 1024
      }
    }
  }
}
