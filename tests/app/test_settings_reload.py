"""Settings that are read again."""

from pathlib import Path

import pytest

from meshgate.app.errors import ConfigError
from meshgate.app.gateway.from_settings import limits_of
from meshgate.app.settings.setting_table import AT_SIGHUP, BY_NAME
from meshgate.app.settings.settings import Origin, Reload, Settings
from meshgate.core.addresses import HostPort


def settings(file: Path, **environ: str) -> Settings:
    return Settings.load({"MESHGATE_HELLO_TIMEOUT": "7s"}, environ={"MESHGATE_ENV_FILE": str(file)} | environ)


def test_what_can_take_effect_does_and_the_rest_waits(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("MESHGATE_WAN_ADDRESS=192.0.2.1:443\nMESHGATE_SERVICE=two\nCONSUL_HTTP_TOKEN=one\n")
    before = settings(file, MESHGATE_IDLE_TIMEOUT="3m")
    file.write_text(
        "MESHGATE_WAN_ADDRESS=192.0.2.2:443\nMESHGATE_SERVICE=three\nMESHGATE_LOG_LEVEL=debug\nCONSUL_HTTP_TOKEN=two\n"
        # The command line and the environment come first, as at the start.
        "MESHGATE_HELLO_TIMEOUT=1s\nMESHGATE_IDLE_TIMEOUT=1s\n"
    )
    found = Reload.of(before)
    assert found.taken == ("CONSUL_HTTP_TOKEN", "MESHGATE_LOG_LEVEL", "MESHGATE_WAN_ADDRESS")
    assert found.waiting == ("MESHGATE_SERVICE",)
    now = found.in_force
    assert (now.wan_address, now.log_level, now.service) == (HostPort("192.0.2.2", 443), "debug", "two")
    assert now.consul["CONSUL_HTTP_TOKEN"] == "two"
    assert (now.hello_timeout, now.idle_timeout) == (7, 180)
    assert now.origin("MESHGATE_LOG_LEVEL") is Origin.ENV_FILE
    assert now.shown("MESHGATE_SERVICE") == "two"
    # What waits does so until it is as it was.
    assert Reload.of(now).waiting == ("MESHGATE_SERVICE",)
    file.write_text(file.read_text().replace("SERVICE=three", "SERVICE=two"))
    assert (Reload.of(now).taken, Reload.of(now).waiting) == ((), ())


def test_token_that_takes_effect_brings_nothing_along_that_waits(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("CONSUL_HTTP_TOKEN=one\nCONSUL_PARTITION=p1\n")
    before = settings(file)
    file.write_text("CONSUL_HTTP_TOKEN=two\nCONSUL_PARTITION=p2\nCONSUL_HTTP_ADDR=192.0.2.1:8500\n")
    found = Reload.of(before)
    assert (found.taken, found.waiting) == (("CONSUL_HTTP_TOKEN",), ("CONSUL_HTTP_ADDR", "CONSUL_PARTITION"))
    assert found.in_force.consul == {"CONSUL_HTTP_TOKEN": "two", "CONSUL_PARTITION": "p1"}
    assert found.in_force.partition == "p1"


def test_setting_that_is_taken_out_has_its_default_again(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("MESHGATE_WAN_ADDRESS=192.0.2.1:443\nMESHGATE_DRAIN_TIMEOUT=1s\n")
    before = settings(file)
    file.write_text("")
    found = Reload.of(before)
    assert found.taken == ("MESHGATE_DRAIN_TIMEOUT", "MESHGATE_WAN_ADDRESS")
    assert (found.in_force.wan_address, found.in_force.drain_timeout) == (None, 30)


@pytest.mark.parametrize("text", ["MESHGATE_WAN_ADDRESS=nonsense\n", "MESHGATE_NONE=1\n", None])
def test_settings_that_cannot_be_used_are_an_error(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "env"
    file.write_text("")
    before = settings(file)
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(ConfigError):
        Reload.of(before)


def test_without_a_file_nothing_changes() -> None:
    found = Reload.of(Settings.load(environ={"MESHGATE_WORKERS": "2"}))
    assert (found.taken, found.waiting) == ((), ())


def test_names_are_those_of_the_table() -> None:
    assert BY_NAME.keys() >= AT_SIGHUP


def test_how_long_an_attempt_may_take_is_read_again_as_the_other_timeouts_are(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("")
    before = settings(file)
    file.write_text("MESHGATE_PER_TRY_TIMEOUT=3s\nMESHGATE_KEEPALIVE=3s\n")
    found = Reload.of(before)
    assert (found.taken, found.waiting) == (("MESHGATE_PER_TRY_TIMEOUT",), ("MESHGATE_KEEPALIVE",))
    limits = limits_of(found.in_force)
    assert (limits.per_try_timeout, limits.keepalive) == (3, 60)
