import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from meshgate.adapters.consul.api import ConsulAddress, ConsulClient, ConsulConfigError
from meshgate.adapters.consul.api.credentials import TokenSource

FIRST = "11111111-aaaa"
SECOND = "22222222-bbbb"


def bearer(source: TokenSource) -> str | None:
    return source.header().get("Authorization")


def test_a_fixed_token_goes_as_a_bearer() -> None:
    assert TokenSource(FIRST).header() == {"Authorization": f"Bearer {FIRST}"}


def test_without_a_token_nothing_is_sent() -> None:
    assert TokenSource().header() == {}
    assert (TokenSource().given, TokenSource(FIRST).given) == (False, True)


def test_with_basic_authentication_the_token_has_its_own_header() -> None:
    basic = {"Authorization": "Basic dXNlcjpwYXNz"}
    assert TokenSource(FIRST, http_auth=("user", "pass")).header() == basic | {"X-Consul-Token": FIRST}
    assert TokenSource(http_auth=("user", "pass")).header() == basic


def test_the_file_is_trimmed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"\n  {FIRST} \r\n")
    assert bearer(TokenSource(file=str(file))) == f"Bearer {FIRST}"


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(FIRST)
    source = TokenSource(file=str(file))
    assert (bearer(source), source.version) == (f"Bearer {FIRST}", 1)
    file.write_text(SECOND)
    os.utime(file, ns=(1, 1))
    assert (bearer(source), source.version) == (f"Bearer {SECOND}", 2)


def test_a_file_that_was_replaced_by_one_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    file, new = tmp_path / "token", tmp_path / "new"
    file.write_text(FIRST)
    new.write_text(SECOND)
    for path in (file, new):
        os.utime(path, ns=(1, 1))
    source = TokenSource(file=str(file))
    new.rename(file)
    assert bearer(source) == f"Bearer {SECOND}"


def test_the_version_sees_a_change_without_a_request(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(FIRST)
    source = TokenSource(file=str(file))
    before = source.version
    file.write_text(SECOND + "-longer")
    assert source.version == before + 1


def test_an_unchanged_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(FIRST)
    source = TokenSource(file=str(file))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("read again"))
    assert bearer(source) == f"Bearer {FIRST}"


def test_a_missing_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConsulConfigError, match=r"token file .*none cannot be read: No such file"):
        TokenSource(FIRST, file=str(tmp_path / "none"))


def test_an_empty_file_at_the_start_leaves_the_token_of_lower_rank(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" \n")
    source = TokenSource(FIRST, str(file))
    assert bearer(source) == f"Bearer {FIRST}"
    assert "is empty" in source.problem


@pytest.mark.parametrize("spoil", ["remove", "empty", "binary"])
def test_a_file_that_is_spoilt_later_leaves_the_last_token_and_is_reported_once(tmp_path: Path, spoil: str) -> None:
    file = tmp_path / "token"
    file.write_text(FIRST)
    source = TokenSource(file=str(file))
    if spoil == "remove":
        file.unlink()
    else:
        file.write_bytes(b"" if spoil == "empty" else b"\xff\x00junk")
    with capture_logs() as logs:
        for _ in range(3):
            assert bearer(source) == f"Bearer {FIRST}"
    assert [entry["event"] for entry in logs] == ["what was read before stays in use"]
    assert str(file) in source.problem
    file.write_text(SECOND + "-2")
    with capture_logs() as logs:
        assert bearer(source) == f"Bearer {SECOND}-2"
    assert [entry["event"] for entry in logs] == ["files are usable again"]
    assert source.problem == ""


def test_a_file_that_comes_back_as_it_was_is_usable_again(tmp_path: Path) -> None:
    file, away = tmp_path / "token", tmp_path / "away"
    file.write_text(FIRST)
    source = TokenSource(file=str(file))
    file.rename(away)
    assert bearer(source) == f"Bearer {FIRST}"
    assert "cannot be read" in source.problem
    away.rename(file)
    assert bearer(source) == f"Bearer {FIRST}"
    assert source.problem == ""


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "umläut", "nul\0"])
def test_what_cannot_stand_in_a_header_is_refused_without_being_repeated(tmp_path: Path, token: str) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    for fixed, path in ((token, ""), ("", str(file))):
        with pytest.raises(ConsulConfigError, match="characters that no token has") as raised:
            TokenSource(fixed, path)
        assert token not in str(raised.value)


def test_the_source_of_an_address_has_its_rank_and_authentication(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("")
    address = ConsulAddress.from_settings(
        {"CONSUL_HTTP_TOKEN": FIRST, "CONSUL_HTTP_TOKEN_FILE": str(file), "CONSUL_HTTP_AUTH": "u:p"}
    )
    assert ConsulClient(address).token.header()["X-Consul-Token"] == FIRST


def test_neither_repr_nor_redacted_text_holds_a_credential() -> None:
    source = TokenSource(FIRST, http_auth=("user", "pass"))
    assert FIRST not in repr(source)
    assert source.redact(f"echo {FIRST} dXNlcjpwYXNz!") == "echo (token) (token)!"
