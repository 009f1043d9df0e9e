"""`-gateway=mesh`, which users of `consul connect envoy` are used to writing."""

import pytest

from meshgate.app.cli.main import execute

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
    assert first == "meshgate run: meshgate is a mesh gateway and no other: --gateway takes mesh only"
    assert hint == "Try 'meshgate run --help'."
