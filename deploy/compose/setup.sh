#!/bin/sh
# What a fresh pair of datacenters needs before the gateways start. All of it may be done twice.
#
#   DC1, DC2            addresses of an agent in the primary and in the other datacenter
#   MANAGEMENT_TOKEN    may do everything
#   GATEWAY_TOKEN       the secret that the gateways' token is to have; SERVICE_TOKEN: that of web and shop
#   RULES               acl-policy.hcl
#   WEB_ADDRESS         where web's sidecar listens, on port 21000
set -eu

export CONSUL_HTTP_TOKEN="$MANAGEMENT_TOKEN"

# Policies and tokens belong to the primary; the other datacenter copies them.
export CONSUL_HTTP_ADDR="$DC1"

policy() {
    consul acl policy read -name "$1" >/dev/null 2>&1 || consul acl policy create -name "$1" -rules "$2" >/dev/null
}

token() {
    CONSUL_HTTP_TOKEN=$2 consul acl token read -self >/dev/null 2>&1 ||
        consul acl token create -description "$1" -secret "$2" -policy-name "$1" >/dev/null
}

policy mesh-gateway "@$RULES"
token mesh-gateway "$GATEWAY_TOKEN"
policy example-services 'service_prefix "" { policy = "write" } node_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }'
token example-services "$SERVICE_TOKEN"

consul config write - >/dev/null <<'ENTRY'
Kind = "proxy-defaults"
Name = "global"
MeshGateway {
  Mode = "local"
}
ENTRY
consul intention create -allow -replace shop web >/dev/null

# The other datacenter has the token once its copy has arrived.
tries=0
until CONSUL_HTTP_ADDR=$DC2 CONSUL_HTTP_TOKEN=$SERVICE_TOKEN consul acl token read -self >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -gt 120 ]; then
        echo "setup: the tokens did not arrive in the other datacenter" >&2
        exit 1
    fi
    sleep 0.5
done

folder=$(mktemp -d)
cat >"$folder/web.hcl" <<SERVICE
service {
  name    = "web"
  address = "$WEB_ADDRESS"
  port    = 8080
  connect {
    sidecar_service {
      address = "$WEB_ADDRESS"
      port    = 21000
      check {
        name     = "sidecar listens"
        tcp      = "$WEB_ADDRESS:21000"
        interval = "2s"
        timeout  = "1s"
      }
    }
  }
}
SERVICE
CONSUL_HTTP_ADDR=$DC2 CONSUL_HTTP_TOKEN=$SERVICE_TOKEN consul services register "$folder/web.hcl" >/dev/null
rm -r "$folder"
echo "setup: done"
