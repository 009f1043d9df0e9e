"""The ACL policy that the gateway's token needs, and no more: the one source of `deploy/consul/acl-policy.hcl`."""

import re

from .records import GATEWAY_KIND

# Consul takes any text as a service name; in HCL only these characters need no escape.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+-]+")

_POLICY = """\
# What a meshgate mesh gateway needs of Consul's ACL system, and no more.
#
#   consul acl policy create -name {name} -rules @acl-policy.hcl
#   consul acl token create -description "{name}" -policy-name {name}
#
# Make the token in the primary datacenter, as a global one (not -local): the gateway asks each other datacenter for
# its gateways, and that datacenter has to know the token.

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

# The name of its own datacenter, from the local agent.
agent_prefix "" {{
  policy = "read"
}}
"""


def acl_policy(service_name: str = GATEWAY_KIND) -> str:
    """The policy in HCL for a gateway that is registered under `service_name`.

    Raises:
        ValueError: the name holds characters that cannot stand in HCL.
    """
    if not _PLAIN.fullmatch(service_name):
        raise ValueError(f"{service_name!r} is no service name for an ACL rule")
    return _POLICY.format(name=service_name)
