"""Identities of the mesh, with a CA of our own. Consul's own certificates are met in the end-to-end tests."""

import datetime as dt
import os
import ssl
from pathlib import Path

import pytest

from meshgate.adapters.mesh_tls import WrongPeerError, mesh_context, spiffe_id, verify

from .mesh_ca import NOW, mesh_root

WEB = "spiffe://td.consul/ns/default/dc/dc2/svc/web"
ROOT = mesh_root()


def test_the_one_spiffe_id_is_read() -> None:
    assert spiffe_id(ROOT.leaf("https://example.com/", WEB).certificate) == WEB


def test_a_certificate_with_no_or_several_spiffe_ids_is_nobody() -> None:
    with pytest.raises(WrongPeerError, match="names no SPIFFE ID"):
        spiffe_id(ROOT.leaf(san=False).certificate)
    with pytest.raises(WrongPeerError, match="names 0 SPIFFE IDs"):
        spiffe_id(ROOT.leaf("https://example.com/").certificate)
    with pytest.raises(WrongPeerError, match="names 2 SPIFFE IDs"):
        spiffe_id(ROOT.leaf(WEB, WEB + "2").certificate)


def test_a_leaf_leads_to_its_root_directly_or_by_an_intermediate() -> None:
    assert len(verify(ROOT.leaf(WEB).certificate, roots=[ROOT.pem], now=NOW)) == 2
    between = ROOT.authority("dc2")
    leaf = between.leaf(WEB).certificate
    other = mesh_root("other")
    chain = verify(leaf, roots=[other.pem, ROOT.pem], intermediates=[between.pem], now=NOW)
    assert [certificate.subject for certificate in chain] == [
        leaf.subject,
        between.certificate.subject,
        ROOT.certificate.subject,
    ]


def test_a_leaf_of_another_root_leads_nowhere() -> None:
    # The same name, and another key.
    with pytest.raises(WrongPeerError, match="does not lead to the CA roots"):
        verify(mesh_root().leaf(WEB).certificate, roots=[ROOT.pem], now=NOW)


def test_a_leaf_without_its_intermediate_leads_nowhere() -> None:
    with pytest.raises(WrongPeerError, match="does not lead to the CA roots"):
        verify(ROOT.authority("dc2").leaf(WEB).certificate, roots=[ROOT.pem], now=NOW)


def test_a_leaf_that_has_expired_is_not_believed() -> None:
    leaf = ROOT.leaf(WEB, hours=1).certificate
    verify(leaf, roots=[ROOT.pem], now=NOW + dt.timedelta(minutes=59))
    with pytest.raises(WrongPeerError, match="does not lead to the CA roots"):
        verify(leaf, roots=[ROOT.pem], now=NOW + dt.timedelta(minutes=61))


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_key_is_nowhere_to_be_found_afterwards(
    in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    seen: list[tuple[str, int]] = []
    load = ssl.SSLContext.load_cert_chain

    def watched(self: ssl.SSLContext, name: str) -> None:
        on_disk = [file.stat().st_mode & 0o777 for file in tmp_path.iterdir()]
        seen.append((name, on_disk[0] if on_disk else 0))
        load(self, name)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    leaf = ROOT.leaf(WEB)
    mesh_context(leaf.pem, leaf.key_pem, [ROOT.pem])
    ((name, mode),) = seen
    assert mode == (0 if in_memory and hasattr(os, "memfd_create") else 0o600)
    assert list(tmp_path.iterdir()) == []
    assert not Path(name).exists() or name.startswith("/proc/self/fd/")


def test_the_key_is_removed_when_openssl_refuses_it(tmp_path: Path) -> None:
    leaf = ROOT.leaf(WEB)
    with pytest.raises(ssl.SSLError):
        mesh_context(leaf.pem, ROOT.key_pem, [ROOT.pem], folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
