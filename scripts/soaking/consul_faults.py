"""What may happen to Consul and to the token."""

import signal
from typing import Final

import trio
from tests.harness.waiting import until

from meshgate.adapters.consul.policy import acl_policy

from .datacenters import PlacedConsul
from .stage import Stage, checks_of, critical_after_restart, passing, replace

_STEADY_SECONDS: Final = 1.0


async def killed(stage: Stage, datacenter: str) -> None:
    """SIGKILL for a datacenter's only server, which comes back some seconds later."""
    consul = stage.consul(datacenter)
    stage.ledger.note(f"Consul of {datacenter} killed")
    before = await checks_of(consul)
    await consul.kill()
    await trio.sleep(stage.rng.uniform(0.5, 6))
    await restart(stage, consul, before)


async def restarted(stage: Stage, datacenter: str) -> None:
    """SIGTERM for a datacenter's only server, which is started again at once."""
    consul = stage.consul(datacenter)
    stage.ledger.note(f"Consul of {datacenter} restarted")
    before = await checks_of(consul)
    await consul.stop()
    await restart(stage, consul, before)


async def stopped(stage: Stage, datacenter: str) -> None:
    """SIGSTOP for 1 to 8 s: it accepts, and answers nothing."""
    consul = stage.consul(datacenter)
    stage.ledger.note(f"Consul of {datacenter} stopped")
    consul.child.signal(signal.SIGSTOP)
    try:
        await trio.sleep(stage.rng.uniform(1, 8))
    finally:
        consul.child.resume()
    await stage.federation.until_ready(seconds=120)


async def restart(stage: Stage, consul: PlacedConsul, before: dict[str, str]) -> None:
    """Back, with the gateways listed as healthy. `before` are the checks that the agent had (`checks_of`)."""
    taking = {gateway.instance: gateway.port for gateway in stage.fleet.taking(consul.datacenter)}
    well_since = float("inf")

    async def lacking() -> str | None:
        checks = await consul.ask("/v1/agent/checks") or {}
        well = {check["ServiceID"] for check in checks.values() if check["Status"] == "passing"}
        if not taking.keys() <= well:
            return f"the agent takes {well} for healthy, not {taking}"
        listed = await passing(consul, consul.datacenter)
        return None if set(taking.values()) <= (listed or set()) else f"it lists {listed}, not {taking}"

    async def missing() -> str | None:
        # What the agent lists at first is from before; it takes a moment to say what it thinks now.
        nonlocal well_since
        if (text := await lacking()) is not None:
            well_since = float("inf")
            return text
        well_since = min(well_since, trio.current_time())
        return None if trio.current_time() > well_since + _STEADY_SECONDS else "it has only just listed them"

    async with critical_after_restart(stage, consul.datacenter, before):
        await consul.restart(seconds=120)
        await stage.federation.until_ready(seconds=180)
        stage.ledger.note(f"Consul of {consul.datacenter} is back")
        await until(f"the gateways of {consul.datacenter} to be listed as healthy", missing, seconds=90)


async def token_rotated(stage: Stage, _datacenter: str) -> None:
    """A new token in the token file; the old one is deleted a little later."""
    federation = stage.federation
    old = stage.token_file.read_text()
    stage.tokens += 1
    new = await federation.create_policy_token(acl_policy(), f"mesh-gateway-{stage.tokens}")
    replace(stage.token_file, new)
    await trio.sleep(stage.rng.uniform(1, 3))
    accessor = (await federation.dc1.get("/v1/acl/token/self", token=old))["AccessorID"]
    await federation.dc1.delete(f"/v1/acl/token/{accessor}")
    stage.ledger.note("the token was rotated")
    await trio.sleep(2)
