"""What may happen to the network: places that do not reach each other for a while. No stream may end for that.

TCP repeats what was lost ever more rarely; what a partition of a few seconds held back is through within twice that.
"""

from typing import Final

import trio

from .stage import Stage, until_all_known

# Consul looks for servers that it has given up every two or three minutes (its router's rebalancing).
_RECONNECT_SECONDS: Final = 600.0
# For so long a check that Consul began during a partition may still fail.
_CHECK_SECONDS: Final = 10.0


async def gateway_from_agent(stage: Stage, datacenter: str) -> None:
    """A gateway and its agent do not reach each other: it serves on, and the others use its peer meanwhile."""
    gateway, consul = stage.gateway(datacenter), stage.consul(datacenter)
    what = f"{gateway.instance} from Consul of {datacenter}"
    await stage.cut(what, [gateway.place], [consul.place], stage.rng.uniform(1, 25))
    # Until then the other gateway of the datacenter may be the only one in service, and must not be the next victim.
    await trio.sleep(_CHECK_SECONDS)
    await until_all_known(stage, datacenter)


async def gateway_from_gateway(stage: Stage, datacenter: str) -> None:
    """Two gateways do not reach each other: new streams go by another one."""
    other = stage.other(datacenter)
    one, two = stage.gateway(datacenter), stage.gateway(other)
    # Whose hello was on its way may wait longer than a gateway waits for hellos.
    for far in (datacenter, other):
        stage.ledger.shock("gateways cut off from each other under the hello", f"behind {far}")
    await stage.cut(f"{one.instance} from {two.instance}", [one.place], [two.place], stage.rng.uniform(1, 6))


async def datacenters(stage: Stage, datacenter: str) -> None:
    """All gateways and servers of the one datacenter reach none of the other."""
    other = stage.other(datacenter)
    long = stage.rng.random() < 0.2
    seconds = stage.rng.uniform(30, 45) if long else stage.rng.uniform(1, 12)
    ours, theirs = (
        [stage.consul(side).place, *(gateway.place for gateway in stage.fleet.by_datacenter[side])]
        for side in (datacenter, other)
    )
    disturbance = stage.ledger.disturb("datacenters cut off from each other", f"behind {datacenter}", f"behind {other}")
    await stage.cut("dc1 from dc2", ours, theirs, seconds)
    disturbance.close()
    await stage.federation.until_ready(seconds=_RECONNECT_SECONDS)
    for side in (datacenter, other):
        await until_all_known(stage, side)


async def instance_from_gateways(stage: Stage, datacenter: str) -> None:
    """An instance and the gateways do not reach each other: new streams go to another one."""
    instance = stage.instance(datacenter)
    places = [gateway.place for gateway in stage.fleet.by_datacenter[datacenter]]
    stage.ledger.shock("endpoint cut off under the hello", instance.service)
    await stage.cut(f"{instance.instance} from the gateways", [instance.place], places, stage.rng.uniform(1, 10))
