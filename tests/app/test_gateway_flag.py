"""Command lines of `consul connect envoy -gateway=mesh`, which are copied from unit files."""

import pytest

from meshgate.app.cli.main import chosen, cli, execute, options_of

# Flags of `consul connect envoy`: those that meshgate has, and those that are about Envoy or xDS.
_OWN = """
    address admin-bind bind-address deregister-after-critical expose-servers gateway mesh-gateway node-name proxy-id
    register service wan-address http-addr token token-file ca-file ca-path client-cert client-key tls-server-name
    namespace partition
"""
_VALUED = """
    admin-access-log-path envoy-binary envoy-ready-bind-address envoy-ready-bind-port envoy-version grpc-addr
    grpc-ca-file grpc-ca-path prometheus-backend-port prometheus-ca-file prometheus-ca-path prometheus-cert-file
    prometheus-key-file prometheus-scrape-path
"""
_SWITCHES = "enable-config-gen-logging ignore-envoy-compatibility no-central-config omit-deprecated-tags"

SEEN = "MESHGATE_ADMIN_BIND='nonsense' (from the environment): must be ip:port, unix:///path or off"


@pytest.mark.parametrize("flags", [["-gateway=mesh"], ["-gateway", "mesh"], ["--gateway=mesh"], []])
def test_mesh_says_nothing_new(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESHGATE_ADMIN_BIND", "nonsense")
    assert execute(["run", *flags]) == 2
    assert capsys.readouterr().err == f"meshgate: {SEEN}\n"


@pytest.mark.parametrize("kind", ["ingress", "terminating", "api", "MESH", ""])
def test_another_kind_is_refused_in_one_line(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", f"-gateway={kind}"]) == 2
    first, hint = capsys.readouterr().err.splitlines()
    assert first == f"meshgate run: Invalid value for '--gateway': {kind!r} is not 'mesh'."
    assert hint == "Try 'meshgate run --help'."


def test_flags_that_are_about_envoy_are_ignored_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESHGATE_ADMIN_BIND", "nonsense")
    copied = "-mesh-gateway -grpc-addr 127.0.0.1:8502 -no-central-config=true -envoy-version=1.30 -- -l debug"
    assert execute(["run", *copied.split()]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "note: what follows -- is for Envoy and is ignored",
        "note: --grpc-addr is ignored: meshgate needs no xDS",
        "note: --no-central-config is ignored: meshgate needs no xDS",
        "note: --envoy-version is ignored: meshgate needs no xDS",
        f"meshgate: {SEEN}",
    ]


def test_each_flag_that_goes_with_a_mesh_gateway_is_understood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of `consul connect envoy` in Consul 1.22, but for -sidecar-for and -bootstrap."""
    own, valued, switches = _OWN.split(), _VALUED.split(), _SWITCHES.split()
    assert {f"--{name}" for name in (*own, *valued, *switches)} <= options_of(chosen(cli, ["run"])).keys()
    monkeypatch.setenv("MESHGATE_ADMIN_BIND", "nonsense")
    flags = [*(f"-{name}=x" for name in valued), *(f"-{name}" for name in switches)]
    assert execute(["run", *flags]) == 2
    *notes, last = capsys.readouterr().err.splitlines()
    assert sorted(notes) == sorted(f"note: --{name} is ignored: meshgate needs no xDS" for name in (*valued, *switches))
    assert last == f"meshgate: {SEEN}"


def test_a_bootstrap_cannot_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", "-bootstrap"]) == 2
    assert "meshgate has no bootstrap configuration to print" in capsys.readouterr().err
