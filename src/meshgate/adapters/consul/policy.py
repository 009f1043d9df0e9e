"""The ACL policy that the gateway's token needs, and no more: the one source of `deploy/consul/acl-policy*.hcl`."""

import re
from importlib.resources import files
from string import Template

from .api import GATEWAY_KIND

# Consul takes any text as a service name; in HCL only these characters need no escape.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+-]+")


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
    file = files(__package__) / f"acl-policy{'-enterprise' if enterprise else ''}.hcl"
    return Template(file.read_text("utf-8")).substitute(name=service_name, command=command, label=label)
