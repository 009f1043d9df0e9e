from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from meshgate.adapters import machine
from meshgate.app.errors import ConfigError
from meshgate.app.gateway.from_settings import limits_of
from meshgate.app.settings.setting_table import TABLE
from meshgate.app.settings.settings import Origin, Settings
from meshgate.core.addresses import HostPort

SECRET = "5eb1d3c0-token"


def load(flags: dict[str, str] | None = None, environ: dict[str, str] | None = None, env_file: Any = "") -> Any:
    return Settings.load((flags or {}) | {"MESHGATE_ENV_FILE": str(env_file)}, environ=environ or {})


@pytest.fixture
def env_file(tmp_path: Path) -> Any:
    def write(text: str) -> Any:
        path = tmp_path / "gateway.env"
        path.write_text(text)
        return path

    return write


def test_defaults_are_those_of_the_contract() -> None:
    settings = load()
    assert settings.service == settings.proxy_id == "mesh-gateway"
    assert settings.address == HostPort("", 8443)
    assert (settings.wan_address, settings.bind_address, settings.state_dir) == (None, (), None)
    assert (settings.expose_servers, settings.register, settings.log_json) == (False, True, False)
    assert settings.deregister_after_critical == 6 * 3600
    assert settings.admin_bind == HostPort("127.0.0.1", 19000)
    assert (settings.hello_timeout, settings.connect_timeout, settings.idle_timeout) == (15, 5, 3600)
    assert (settings.keepalive, settings.drain_timeout) == (60, 30)
    # Not 0, as the contract had it first: off, one client that completes hellos and stops took every slot.
    assert (settings.max_connections_per_client, settings.max_hello_bytes) == (None, 16384)
    assert (settings.catalog_watches, settings.panic_threshold) == (100, 0)
    assert (settings.access_log, settings.log_level) == ("off", "info")
    assert settings.workers == machine.usable_cores()
    assert settings.max_connections == (machine.reachable_descriptors() - 200) // 2
    assert settings.consul == {}
    assert {settings.origin(setting.name) for setting in TABLE} == {Origin.DEFAULT}


def test_one_client_has_a_quarter_of_the_slots_once_half_are_in_use_unless_a_number_says_otherwise() -> None:
    limits = limits_of(load(environ={"MESHGATE_MAX_CONNECTIONS": "500"}))
    assert (limits.max_connections_per_client, limits.crowded_from) == (125, 250)
    for number in ("0", "7"):
        limits = limits_of(
            load(environ={"MESHGATE_MAX_CONNECTIONS": "500", "MESHGATE_MAX_CONNECTIONS_PER_CLIENT": number})
        )
        assert (limits.max_connections_per_client, limits.crowded_from) == (int(number), 0)


def test_networks_of_exempt_clients() -> None:
    assert load().exempt_clients == ()
    assert load(environ={"MESHGATE_EXEMPT_CLIENTS": "10.0.0.0/8, 192.0.2.7,2001:db8::/32"}).exempt_clients == (
        "10.0.0.0/8",
        "192.0.2.7/32",
        "2001:db8::/32",
    )
    for wrong in ("10.0.0.1/8", "balancer", "10.0.0.0/8,"):
        with pytest.raises(ConfigError, match=r"MESHGATE_EXEMPT_CLIENTS.*must be CIDR blocks"):
            load(environ={"MESHGATE_EXEMPT_CLIENTS": wrong})


def test_every_field_has_a_row_and_every_row_a_field() -> None:
    rows = {setting.field for setting in TABLE if setting.field}
    assert rows == {field.name for field in fields(Settings)} - {"consul", "found", "_given"}


def test_every_setting_has_one_name_one_flag_and_help() -> None:
    flags = [setting.flag for setting in TABLE if setting.flag]
    assert len(set(flags)) == len(flags)
    assert len({setting.name for setting in TABLE}) == len(TABLE)
    assert all(setting.help.endswith(".") for setting in TABLE)
    assert all(setting.flag for setting in TABLE if setting.field)


def test_flag_beats_environment_beats_file_beats_default(env_file: Any) -> None:
    name = "MESHGATE_SERVICE"
    path = env_file(f"{name}=from-file\n")
    flag, environ = {name: "from-flag"}, {name: "from-environment"}
    for flags, variables, file, value, origin in (
        (flag, environ, path, "from-flag", Origin.FLAG),
        ({}, environ, path, "from-environment", Origin.ENVIRONMENT),
        ({}, {}, path, "from-file", Origin.ENV_FILE),
        ({}, {}, "", "mesh-gateway", Origin.DEFAULT),
    ):
        settings = load(flags, variables, file)
        assert (settings.service, settings.origin(name)) == (value, origin)


def test_an_empty_value_counts_as_not_set(env_file: Any) -> None:
    settings = load({"MESHGATE_SERVICE": ""}, {"MESHGATE_SERVICE": ""}, env_file("MESHGATE_SERVICE=x\n"))
    assert settings.service == "x"
    assert load(environ={"MESHGATE_WAN_ADDRESS": "", "CONSUL_HTTP_TOKEN": ""}).consul == {}


def test_the_proxy_id_follows_the_service() -> None:
    assert load({"MESHGATE_SERVICE": "gw"}).proxy_id == "gw"
    assert load({"MESHGATE_SERVICE": "gw"}).shown("MESHGATE_PROXY_ID") == "gw"
    assert load({"MESHGATE_SERVICE": "gw", "MESHGATE_PROXY_ID": "gw-1"}).proxy_id == "gw-1"


def test_a_file_is_read_only_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that merely lies in the current folder must not decide where a token goes."""
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("CONSUL_HTTP_ADDR=127.0.0.1:1\nMESHGATE_SERVICE=local\n")
    settings = Settings.load({}, environ={"CONSUL_HTTP_TOKEN": SECRET})
    assert (settings.service, settings.consul) == ("mesh-gateway", {"CONSUL_HTTP_TOKEN": SECRET})
    for flags, environ in (({"MESHGATE_ENV_FILE": ".env"}, {}), ({}, {"MESHGATE_ENV_FILE": ".env"})):
        settings = Settings.load(flags, environ=environ)
        assert (settings.service, settings.env_file) == ("local", Path(".env"))


def test_the_flag_names_another_file_than_the_environment(env_file: Any) -> None:
    named = env_file("MESHGATE_SERVICE=flag\n")
    assert load(environ={"MESHGATE_ENV_FILE": "/nowhere"}, env_file=named).service == "flag"
    with pytest.raises(ConfigError, match=r"/nowhere \(from the environment\) does not exist"):
        load(environ={"MESHGATE_ENV_FILE": "/nowhere"})


def test_a_file_cannot_name_itself_or_another(env_file: Any) -> None:
    with pytest.raises(ConfigError, match="MESHGATE_ENV_FILE cannot stand in a file that it would name"):
        load(env_file=env_file("MESHGATE_ENV_FILE=other\n"))


def test_a_file_may_be_named_by_its_place_in_the_home_directory(env_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = env_file("MESHGATE_SERVICE=homely\n")
    monkeypatch.setenv("HOME", str(path.parent))
    settings = load(env_file=f"~/{path.name}")
    assert (settings.service, settings.env_file) == ("homely", path)
    with pytest.raises(ConfigError, match="does not exist"):
        load(env_file="~nobody-has-this-name/x")


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.env \(from --env-file\) does not exist"):
        load(env_file=tmp_path / "no.env")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, env_file: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        load(env_file=tmp_path)
    path = env_file("")
    path.write_bytes(b"MESHGATE_SERVICE=\xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(env_file=path)


def test_file_values_are_not_interpolated(env_file: Any) -> None:
    path = env_file('CONSUL_HTTP_AUTH=user:pa$HOME${HOME}\nMESHGATE_SERVICE="a#b" # comment\nexport OTHER=1\n')
    settings = load(env_file=path)
    assert settings.consul["CONSUL_HTTP_AUTH"] == "user:pa$HOME${HOME}"
    assert settings.service == "a#b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n# comment\nthis is no setting\n", "line 3 is not NAME=value"),
        ("A=1\n\nMESHGATE_SERVICE\n", "line 3: MESHGATE_SERVICE has no value"),
        ("A\nCONSUL_HTTP_TOKEN\n", "line 2: CONSUL_HTTP_TOKEN has no value"),
        ('MESHGATE_SERVICE="never closed\n', "line 1 is not NAME=value"),
        ("MESHGATE_SERVISE=x\n", r"gateway\.env\) is not a setting; did you mean MESHGATE_SERVICE\?"),
    ],
)
def test_a_faulty_file_is_an_error(env_file: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(env_file=env_file(text))


def test_an_unknown_name_is_an_error_that_names_its_nearest_neighbour() -> None:
    for name, nearest in (
        ("MESHGATE_ADRESS", "MESHGATE_ADDRESS"),
        ("MESHGATE_HELLO_TIME_OUT", "MESHGATE_HELLO_TIMEOUT"),
        ("MESHGATE_WORKER", "MESHGATE_WORKERS"),
    ):
        with pytest.raises(ConfigError, match=rf"{name} \(from the environment\).*did you mean {nearest}"):
            load(environ={name: "x"})
    # What is like nothing else has no neighbour that would help.
    for name in ("MESHGATE_FOO", "MESHGATE_"):
        with pytest.raises(ConfigError, match=rf"^{name} .* is not a setting; the nearest is MESHGATE_\w+, `meshgate"):
            load(environ={name: "x"})


def test_names_of_others_are_left_alone(env_file: Any) -> None:
    assert load(environ={"CONSUL_BIN": "x", "MESH": "y"}, env_file=env_file("OTHER=1\n")).service == "mesh-gateway"


def test_the_service_links_of_kubernetes_are_no_settings() -> None:
    links = {
        "MESHGATE_SERVICE_HOST": "10.96.0.7",
        "MESHGATE_SERVICE_PORT": "8443",
        "MESHGATE_SERVICE_PORT_MTLS": "8443",
        "MESHGATE_PORT": "tcp://10.96.0.7:8443",
        "MESHGATE_PORT_8443_TCP": "tcp://10.96.0.7:8443",
        "MESHGATE_PORT_8443_TCP_ADDR": "10.96.0.7",
        "MESHGATE_WAN_SERVICE_HOST": "10.96.0.8",
        "MESHGATE_WAN_PORT": "tcp://10.96.0.8:8443",
    }
    assert load(environ=links).address.port == 8443
    with pytest.raises(ConfigError, match="MESHGATE_PORT "):
        load(environ={"MESHGATE_PORT": "9443"})


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({"MESHGATE_PANIC_THRESHOLD": "101"}, {}, "'101' (from --panic-threshold): must be a percentage from 0 to 100"),
        ({}, {"MESHGATE_HELLO_TIMEOUT": "0"}, "'0' (from the environment): must be at least 1ms"),
        ({}, {"MESHGATE_LOG_LEVEL": "a\nb"}, r"'a\\nb' (from the environment): must be one of"),
    ],
)
def test_a_bad_value_is_one_line_with_name_value_source_and_what_is_allowed(
    flags: dict[str, str], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags, environ)
    text = str(caught.value)
    assert message in text
    assert text.startswith(next(iter(flags | environ)))
    assert "\n" not in text
    assert caught.value.exit_code == 2


def test_a_bad_value_of_the_file_names_the_file(env_file: Any) -> None:
    path = env_file("MESHGATE_WORKERS=many\n")
    with pytest.raises(ConfigError, match=rf"MESHGATE_WORKERS='many' \(from {path}\): must be a number from 1"):
        load(env_file=path)


def test_exposing_servers_needs_a_registration() -> None:
    with pytest.raises(ConfigError, match="MESHGATE_EXPOSE_SERVERS needs MESHGATE_REGISTER"):
        load({"MESHGATE_EXPOSE_SERVERS": "true", "MESHGATE_REGISTER": "false"})


def test_consul_gets_what_was_set_as_it_was_written() -> None:
    settings = load({"CONSUL_HTTP_ADDR": "unix:///run/consul.sock"}, {"CONSUL_HTTP_SSL": "maybe", "CONSUL_CACERT": "c"})
    assert settings.consul == {
        "CONSUL_HTTP_ADDR": "unix:///run/consul.sock",
        "CONSUL_HTTP_SSL": "maybe",
        "CONSUL_CACERT": "c",
    }


@pytest.mark.parametrize(
    ("flags", "environ", "file", "expected"),
    [
        ({"CONSUL_HTTP_TOKEN": "a"}, {"CONSUL_HTTP_TOKEN": "b"}, "", {"token": "a"}),
        (
            {"CONSUL_HTTP_TOKEN": "a"},
            {"CONSUL_HTTP_TOKEN_FILE": "/b"},
            "",
            {"token": "a", "CONSUL_HTTP_TOKEN_FILE": "/b"},
        ),
        (
            {"CONSUL_HTTP_TOKEN_FILE": "/a"},
            {"CONSUL_HTTP_TOKEN": "b"},
            "",
            {"token-file": "/a", "CONSUL_HTTP_TOKEN": "b"},
        ),
        (
            {},
            {"CONSUL_HTTP_TOKEN": "a", "CONSUL_HTTP_TOKEN_FILE": "/b"},
            "",
            {"CONSUL_HTTP_TOKEN": "a", "CONSUL_HTTP_TOKEN_FILE": "/b"},
        ),
        # The file's token file would beat the environment's token, which beats the file.
        ({}, {"CONSUL_HTTP_TOKEN": "a"}, "CONSUL_HTTP_TOKEN_FILE=/b\n", {"CONSUL_HTTP_TOKEN": "a"}),
        (
            {},
            {},
            "CONSUL_HTTP_TOKEN_FILE=/b\nCONSUL_HTTP_TOKEN=c\n",
            {"CONSUL_HTTP_TOKEN_FILE": "/b", "CONSUL_HTTP_TOKEN": "c"},
        ),
    ],
)
def test_a_token_keeps_the_rank_of_its_source(
    flags: dict[str, str], environ: dict[str, str], file: Any, expected: Any, env_file: Any
) -> None:
    assert load(flags, environ, env_file(file)).consul == expected


def test_no_secret_is_in_a_repr_or_a_listing() -> None:
    environ = {"CONSUL_HTTP_TOKEN": SECRET, "CONSUL_HTTP_AUTH": f"me:{SECRET}"}
    environ["CONSUL_HTTP_ADDR"] = f"http://me:{SECRET}@consul:8500"
    settings = load(environ=environ)
    assert settings.consul["CONSUL_HTTP_TOKEN"] == SECRET
    shown = repr(settings) + repr(settings.found) + "".join(settings.shown(setting.name) for setting in TABLE)
    assert SECRET not in shown
    assert settings.shown("CONSUL_HTTP_TOKEN") == "********"
    assert settings.shown("CONSUL_HTTP_ADDR") == "http://********@consul:8500"
    assert set(settings.secrets()) == {SECRET, f"me:{SECRET}"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"MESHGATE_LOGIN_AUTH_METHOD": "k8s"}, "need each other"),
        ({"MESHGATE_LOGIN_BEARER_TOKEN_FILE": "/jwt"}, "need each other"),
        (
            {
                "MESHGATE_LOGIN_AUTH_METHOD": "k8s",
                "MESHGATE_LOGIN_BEARER_TOKEN_FILE": "/jwt",
                "CONSUL_HTTP_TOKEN_FILE": "/token",
            },
            "leave one of them out",
        ),
    ],
)
def test_a_login_is_whole_and_instead_of_a_token(given: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Settings.load(environ=given)
