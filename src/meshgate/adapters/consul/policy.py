"""The ACL policy that the gateway's token needs, and no more: the one source of `deploy/consul/acl-policy*.hcl`."""

import re

from .api import GATEWAY_KIND

# Consul takes any text as a service name; in HCL only these characters need no escape.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+-]+")

_POLICY = """\
# What a meshgate mesh gateway needs of Consul's ACL system, and no more. To save and apply it, in the primary
# datacenter, with a token that may manage ACLs:
#
#   {command} > {label}.hcl
#   consul acl policy create -name {label} -rules @{label}.hcl
#   consul acl token create -description {label} -policy-name {label}
#
# The SecretID that this prints is the gateway's token (--token-file). It has to be a global one (not -local): the
# gateway asks each other datacenter for its gateways, and that datacenter has to know the token.

# Its own registration.
service "{name}" {{
  policy = "write"
}}

# The services that it routes to, their sidecars and resolvers, and the gateways of other datacenters. A narrower rule
# works as well; what it leaves out has no route.
service_prefix "" {{
  policy = "read"
}}

# The addresses and the health of the nodes that these run on.
node_prefix "" {{
  policy = "read"
}}

# Cluster peering: which clusters are peered, and which services are exported to them. Only Consul 1.13 and later knows
# these two; without peering they can be left out.
peering = "read"
mesh    = "read"

# The name of its own datacenter, from the local agent.
agent_prefix "" {{
  policy = "read"
}}
"""

_ENTERPRISE = """\
# What a meshgate mesh gateway needs of the ACL system of Consul Enterprise, with admin partitions and namespaces. To
# save and apply it, in the partition "default" of the primary datacenter, with a token that may manage ACLs:
#
#   {command} > {label}.hcl
#   consul acl policy create -name {label} -rules @{label}.hcl
#   consul acl token create -description {label} -policy-name {label}
#
# The SecretID that this prints is the gateway's token (--token-file). It has to be a global one (not -local), of the
# partition "default": from there alone rules for other partitions are possible.

# Which other partitions there are.
operator = "read"

partition_prefix "" {{
  # Cluster peering: which clusters are peered, and which services are exported.
  peering = "read"
  mesh    = "read"

  # The name of its own datacenter, from the local agent.
  agent_prefix "" {{
    policy = "read"
  }}

  # Its own registration. For a gateway of one partition this may stand in partition "its-name" alone.
  namespace "default" {{
    service "{name}" {{
      policy = "write"
    }}
  }}

  # The services of its own partition, and the gateways of the others, with their nodes.
  namespace_prefix "" {{
    service_prefix "" {{
      policy = "read"
    }}

    node_prefix "" {{
      policy = "read"
    }}
  }}
}}
"""


def acl_policy(service_name: str = GATEWAY_KIND, *, enterprise: bool = False) -> str:
    """The policy in HCL for a gateway of this name; `enterprise` for all partitions and namespaces.

    Raises:
        ValueError: the name holds characters that cannot stand in HCL.
    """
    if not _PLAIN.fullmatch(service_name):
        raise ValueError(f"{service_name!r} is no service name for an ACL rule")
    named = "" if service_name == GATEWAY_KIND else f" --service {service_name}"
    command = f"meshgate policy{named}{' --enterprise' if enterprise else ''}"
    # Names of policies may have fewer characters than those of services.
    label = re.sub(r"[^A-Za-z0-9_-]", "-", service_name)
    return (_ENTERPRISE if enterprise else _POLICY).format(name=service_name, command=command, label=label)
