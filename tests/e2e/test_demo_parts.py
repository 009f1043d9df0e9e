"""The real parts that the demo and the end-to-end tests stand on do what they say."""

import hashlib
import os
from collections.abc import Iterator

import pytest
import trio

from meshgate.adapters.mesh_tls import RefusedError, WrongPeerError
from tests.harness.agent import Consul, ConsulError
from tests.harness.caller import Caller
from tests.harness.cluster import Federation
from tests.harness.native import native_service
from tests.harness.sidecar import sidecar_for

from .remains import gone, pids

real = pytest.mark.consul


@pytest.fixture(scope="module")
def federation(consul_binary: str) -> Iterator[Federation]:
    federation = trio.run(Federation.start, consul_binary)
    try:
        # A secondary takes over a handful of changes to intentions at once, then one each five seconds.
        trio.run(federation.set_intention, "caller", "*", "allow")
        trio.run(federation.set_intention, "caller", "closed", "deny")
        yield federation
    finally:
        trio.run(federation.stop)
    assert all(gone(pid) for pid in pids(federation))
    assert not federation.folder.exists()


def sni(federation: Federation, service: str) -> str:
    return f"{service}.default.dc2.internal.{federation.trust_domain}"


# The datacenters


@real
async def test_each_datacenter_answers_for_the_other_under_one_trust_domain(federation: Federation) -> None:
    for consul in federation.datacenters:
        for other in federation.datacenters:
            nodes = await consul.get("/v1/catalog/nodes", dc=other.datacenter)
            assert [node["Node"] for node in nodes] == [other.node]
        roots = await consul.get("/v1/connect/ca/roots")
        assert roots["TrustDomain"] == federation.trust_domain


@real
async def test_without_a_token_nothing_is_shown_or_done(federation: Federation) -> None:
    assert await federation.dc2.get("/v1/catalog/services", token="") == {}
    with pytest.raises(ConsulError, match="Permission denied") as refused:
        await federation.dc2.put("/v1/agent/service/register", {"Name": "x"}, token="")
    assert refused.value.status == 403


@real
async def test_a_policy_token_may_what_its_rules_say_in_both_datacenters_at_once(federation: Federation) -> None:
    rules = 'service_prefix "consul" { policy = "read" }\nnode_prefix "" { policy = "read" }'
    secret = await federation.create_policy_token(rules, "reads-consul")
    for consul in federation.datacenters:
        assert list(await consul.get("/v1/catalog/services", token=secret)) == ["consul"]
        with pytest.raises(ConsulError, match="Permission denied"):
            await consul.put("/v1/agent/service/register", {"Name": "other"}, token=secret)


@real
async def test_a_local_token_is_unknown_in_the_other_datacenter(federation: Federation) -> None:
    rules = 'service_prefix "" { policy = "read" }\nnode_prefix "" { policy = "read" }'
    secret = await federation.create_policy_token(rules, "local-to-dc2", local_to=federation.dc2)
    assert "consul" in await federation.dc2.get("/v1/catalog/services", token=secret)
    with pytest.raises(ConsulError, match="ACL not found"):
        await federation.dc1.get("/v1/catalog/services", token=secret)


@real
async def test_a_configuration_entry_is_in_both_datacenters_once_written_and_in_none_once_deleted(
    federation: Federation,
) -> None:
    for timeout in ("3s", "4s", "4s"):
        entry = {"Kind": "service-resolver", "Name": "entry", "ConnectTimeout": timeout}
        await federation.write_config_entry(entry)
        for consul in federation.datacenters:
            assert (await consul.get("/v1/config/service-resolver/entry"))["ConnectTimeout"] == timeout
    for _ in range(2):
        await federation.delete_config_entry("service-resolver", "entry")
        for consul in federation.datacenters:
            assert await consul.get("/v1/config/service-resolver") == []


# Sidecars and callers


@real
async def test_a_caller_of_dc1_meets_the_sidecar_of_dc2(federation: Federation) -> None:
    async with sidecar_for(federation.dc2, "web", named=True) as web:
        caller = await Caller.of(federation.dc1, "caller", federation.folder)
        identity = f"spiffe://{federation.trust_domain}/ns/default/dc/dc2/svc/web"
        answer = await caller.call(web.address, sni(federation, "web"), b"hello\n", expect=identity)
        assert answer.data == b"web\nhello\n"
        assert answer.met.spiffe_id == identity
        assert answer.met.tls_version == "TLSv1.3"
        assert 0 < answer.met.connect_seconds + answer.met.handshake_seconds < 5
        assert caller.spiffe_id == f"spiffe://{federation.trust_domain}/ns/default/dc/dc1/svc/caller"
        assert not list(federation.folder.glob("*.pem"))


@real
async def test_a_caller_notices_that_it_met_somebody_else(federation: Federation) -> None:
    async with sidecar_for(federation.dc2, "other") as other:
        caller = await Caller.of(federation.dc1, "caller", federation.folder)
        wanted = f"spiffe://{federation.trust_domain}/ns/default/dc/dc2/svc/web"
        with pytest.raises(WrongPeerError, match=f"expected {wanted}, met .*svc/other"):
            await caller.call(other.address, sni(federation, "web"), expect=wanted)


@real
@pytest.mark.parametrize("source", ["caller", "stranger"])
async def test_the_sidecar_refuses_who_is_denied_and_who_is_not_allowed(federation: Federation, source: str) -> None:
    async with sidecar_for(federation.dc2, "closed") as closed:
        caller = await Caller.of(federation.dc1, source, federation.folder)
        with pytest.raises(RefusedError) as refused:
            await caller.call(closed.address, sni(federation, "closed"))
        assert (refused.value.stage, refused.value.alert) == ("stream", "bad_certificate")


@real
async def test_a_native_service_judges_callers_by_intentions_and_proves_its_identity(federation: Federation) -> None:
    async with native_service(federation.dc2, "native", federation.folder, named=True) as native:
        stranger = await Caller.of(federation.dc1, "stranger", federation.folder)
        with pytest.raises(RefusedError, match=r"stream: (closed|connection reset)"):
            await stranger.call(native.address, sni(federation, "native"))
        caller = await Caller.of(federation.dc1, "caller", federation.folder)
        answer = await caller.call(native.address, sni(federation, "native"), b"hello")
        assert answer.data == b"native\nhello"
        assert answer.met.spiffe_id == f"spiffe://{federation.trust_domain}/ns/default/dc/dc2/svc/native"


@real
async def test_intentions_are_written_changed_and_removed(federation: Federation) -> None:
    async def actions(consul: Consul) -> list[str]:
        rows = await consul.get("/v1/connect/intentions")
        return [row["Action"] for row in rows if row["DestinationName"] == "changing"]

    for action in ("allow", "deny", None):
        await federation.set_intention("caller", "changing", action)
        for consul in federation.datacenters:
            assert await actions(consul) == ([action] if action else [])


@real
async def test_after_the_caller_ended_sending_all_that_is_under_way_still_arrives(federation: Federation) -> None:
    sent = os.urandom(4 << 20)
    received = hashlib.sha256()
    async with native_service(federation.dc2, "halves", federation.folder) as halves:
        caller = await Caller.of(federation.dc1, "caller", federation.folder)
        async with caller.connect(halves.address, sni(federation, "halves")) as conversation:

            async def send() -> None:
                await conversation.send_all(sent)
                await conversation.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while data := await conversation.receive_some():
                    received.update(data)
    assert received.digest() == hashlib.sha256(sent).digest()


@real
async def test_what_was_decrypted_before_the_caller_ended_sending_is_not_lost(federation: Federation) -> None:
    async with native_service(federation.dc2, "early", federation.folder, named=True) as early:
        caller = await Caller.of(federation.dc1, "caller", federation.folder)
        async with caller.connect(early.address, sni(federation, "early")) as conversation:
            received = await conversation.receive_some(1)
            await conversation.send_eof()
            while data := await conversation.receive_some(2):
                received += data
    assert received == b"early\n"


@real
async def test_a_sidecar_turns_critical_recovers_moves_and_leaves_in_the_catalog(federation: Federation) -> None:
    async def rows() -> list[tuple[str, int, set[str]]]:
        answer = await federation.dc1.get("/v1/health/connect/moving", dc="dc2")
        return [
            (row["Service"]["ID"], row["Service"]["Port"], {check["Status"] for check in row["Checks"]})
            for row in answer
        ]

    async with sidecar_for(federation.dc2, "moving", instance="moving-1", Meta={"version": "v1"}) as moving:
        first = moving.port
        assert await rows() == [("moving-1-sidecar-proxy", first, {"passing"})]
        await moving.set_health("critical")
        assert await rows() == [("moving-1-sidecar-proxy", first, {"passing", "critical"})]
        await moving.set_health("passing")
        await moving.move()
        assert moving.port != first
        assert await rows() == [("moving-1-sidecar-proxy", moving.port, {"passing"})]
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", first)
        (row,) = await federation.dc2.get("/v1/health/connect/moving")
        assert row["Service"]["Meta"] == {"version": "v1"}
        await moving.deregister()
        assert await rows() == []


@real
async def test_an_agent_that_was_killed_comes_back_with_what_was_registered(federation: Federation) -> None:
    async with sidecar_for(federation.dc2, "kept") as kept:
        before = federation.dc2.child.pid
        await federation.dc2.kill()
        assert gone(before)
        with pytest.raises(ConsulError, match="no answer"):
            await federation.dc2.get("/v1/status/leader")
        await federation.dc2.restart()
        assert federation.dc2.child.pid != before
        await federation.until_ready()
        (state,) = (await federation.dc2.get("/v1/agent/checks", filter=f'ServiceID == "{kept.listed_as}"')).values()
        assert state["Status"] == "passing"
        await kept.until_listed()


@real
async def test_a_paused_agent_answers_nothing_until_it_goes_on(federation: Federation) -> None:
    federation.dc1.child.pause()
    try:
        with trio.move_on_after(0.5) as waited:
            await federation.dc1.get("/v1/status/leader")
        assert waited.cancelled_caught
    finally:
        federation.dc1.child.resume()
    await federation.until_ready()
