"""What tests need of the version of Consul, for the marks `since_consul` and `before_consul`: the version, and why.

`docs/reliability.md` lists them for whoever wonders what was not run.
"""

from typing import Final, TypeAlias

from tests.harness.agent import Version

Need: TypeAlias = tuple[Version, str]

XDS: Final[Need] = (1, 15, 0), "a bootstrap for an Envoy that Consul does not know"
PEERING: Final[Need] = (1, 17, 0), "cluster peering through gateways, and the list of exports"
KEYS_KEPT: Final[Need] = (1, 16, 0), "later agents give cached leaves to any token"

SINCE: Final = (XDS, PEERING)
BEFORE: Final = (KEYS_KEPT,)
