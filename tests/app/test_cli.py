import json
import os
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshgate import __version__
from meshgate.app.cli import main as cli_module
from meshgate.app.cli.consul_commands import _show_findings
from meshgate.app.cli.main import chosen, cli, execute, normalized, options_of
from meshgate.app.cli.output import Printer
from meshgate.app.errors import CommandError, ConfigError
from meshgate.app.settings.settings import Settings
from meshgate.app.settings.settings_doc import env_example
from meshgate.core.prerequisites import Finding, Status

SECRET = "5eb1d3c0-2f6b-token"


pytestmark = pytest.mark.usefixtures("clean_place")


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for the gateway: runs `act` and notes the settings it got."""
    module = types.ModuleType("meshgate.app.composition_root")
    seen = []

    def make(act: Any = lambda settings: None) -> Any:
        def run_gateway(settings: Settings, taken: None) -> Any:
            seen.append(settings)
            return act(settings)

        module.__dict__["run_gateway"] = run_gateway
        monkeypatch.setitem(sys.modules, "meshgate.app.composition_root", module)
        return seen

    return make


def failing(error: BaseException) -> Any:
    def act(_: Any) -> None:
        raise error

    return act


def meshgate(*arguments: str, env: Any = None, **options: Any) -> Any:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MESHGATE_", "CONSUL_"))}
    return subprocess.run(  # noqa: PLW1510 - the code is what is tested
        [sys.executable, "-m", "meshgate", *arguments],
        env=environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=30,
        **options,
    )


def test_the_version() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"meshgate {__version__}\n"


def test_the_commands_of_this_version_are_listed() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    built = {
        "completion",
        "config",
        "connections",
        "demo",
        "drain",
        "explain",
        "policy",
        "probe",
        "routes",
        "run",
        "top",
        "whatif",
    }
    assert built <= set(cli.commands)
    assert all(f"  {name} " in result.output for name in cli.commands)
    assert "..." not in result.output.partition("Run the gateway:")[2].partition("Exit codes:")[0]


@pytest.mark.parametrize("name", [*cli.commands])
def test_each_help_has_examples_that_name_flags_which_exist(name: str) -> None:
    text = CliRunner().invoke(cli, [name, "--help"]).output
    assert CliRunner().invoke(cli, ["help", name]).output.partition("\n")[2] == text.partition("\n")[2]
    _, _, examples = text.partition("Examples:\n")
    lines = [line for line in examples.splitlines() if "meshgate " in line]
    known = options_of(chosen(cli, [name]))
    for line in lines:
        words = line.partition("meshgate ")[2].partition("|")[0].rstrip(")").split()
        assert words[0] == name
        flags = [word for word in normalized(words, known) if word.startswith("--")]
        assert [flag for flag in flags if flag not in known] == []
    assert lines


def test_help_lists_flags_under_the_headings_of_the_settings() -> None:
    text = CliRunner().invoke(cli, ["help", "run"]).output
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", "Consul:", "Registration:", "Streams:", "Operation:", "Examples:"]
    assert "--drain-timeout" in text.partition("Streams:")[2].partition("Operation:")[0]


def test_help_of_nothing_is_that_of_meshgate_with_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Ask Consul:" in out
    codes = "0 fine; 1 failed at run time, or refused; 2 wrong usage or settings; 130 after Ctrl-C; "
    assert f"Exit codes: {codes}143 after a second SIGTERM." in out
    assert execute(["help", "nosuch"]) == 2


@pytest.mark.parametrize("command", ["run", "config"])
def test_help_names_every_flag_its_variable_and_default(command: Any) -> None:
    text = " ".join(CliRunner().invoke(cli, [command, "--help"]).output.split())
    promised = """
        --http-addr --token --token-file --ca-file --ca-path --client-cert --client-key --tls-server-name --namespace
        --partition --service --proxy-id --address --wan-address --bind-address --expose-servers
        --deregister-after-critical --admin-bind --register --no-register --env-file --log-level --log-json
    """
    assert [flag for flag in promised.split() if f"{flag} " not in text] == []
    assert "env: MESHGATE_HELLO_TIMEOUT; default: 15s" in text


def test_run_gets_its_settings_from_flags_environment_and_file(
    gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = gateway()
    (tmp_path / "x.env").write_text("MESHGATE_DRAIN_TIMEOUT=2s\nMESHGATE_SERVICE=file\n")
    monkeypatch.setenv("MESHGATE_SERVICE", "environment")
    line = "run -address 10.0.0.1:9443 -bind-address a=1.2.3.4:5 --bind-address=b=[::1]:6 -expose-servers=true"
    assert execute([*line.split(), "--env-file=x.env", "--log-json", "-token", SECRET]) == 0
    (settings,) = seen
    assert str(settings.address) == "10.0.0.1:9443"
    assert [bind.name for bind in settings.bind_address] == ["a", "b"]
    assert (settings.expose_servers, settings.log_json, settings.drain_timeout) == (True, True, 2.0)
    assert settings.service == "environment"
    assert settings.consul == {"token": SECRET}


def test_a_boolean_flag_overrides_the_environment_both_ways(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = gateway()
    monkeypatch.setenv("MESHGATE_REGISTER", "false")
    monkeypatch.setenv("MESHGATE_LOG_JSON", "true")
    execute(["run", "--register", "--no-log-json"])
    assert (seen[0].register, seen[0].log_json) == (True, False)


def test_the_exit_code_of_the_gateway_is_that_of_the_command(gateway: Any) -> None:
    gateway(lambda settings: 7)
    assert execute(["run"]) == 7


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CommandError("no way"), 1, "meshgate: no way\n"),
        (ConfigError("bad\nthing"), 2, "meshgate: bad\\nthing\n"),
        (ExceptionGroup("g", [ExceptionGroup("h", [CommandError("deep")])]), 1, "meshgate: deep\n"),
        (ExceptionGroup("g", [ValueError("x"), ConfigError("cause")]), 2, "meshgate: cause\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "meshgate: Permission denied: /x\n"),
        (
            RuntimeError("odd"),
            1,
            "meshgate: unexpected RuntimeError: odd; MESHGATE_LOG_LEVEL=debug shows where\n",
        ),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    gateway: Any, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    gateway(failing(error))
    assert execute(["run"]) == code
    assert capsys.readouterr() == ("", line)


def test_a_traceback_is_shown_to_who_asks_for_it(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    gateway(failing(RuntimeError("odd")))
    assert execute(["run", "--log-level=debug"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("meshgate: unexpected RuntimeError: odd")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BaseExceptionGroup("g", [KeyboardInterrupt()])])
def test_ctrl_c_ends_quietly(gateway: Any, capsys: pytest.CaptureFixture[str], error: BaseException) -> None:
    gateway(failing(error))
    assert execute(["run"]) == 130
    assert capsys.readouterr().err.strip() == ""


def test_an_exit_asked_for_is_an_exit(gateway: Any) -> None:
    gateway(failing(SystemExit(5)))
    with pytest.raises(SystemExit):
        execute(["run"])


@pytest.mark.parametrize("where", ["flag", "environment", "file"])
@pytest.mark.parametrize("level", ["info", "trace"])
def test_no_secret_is_in_an_error(
    gateway: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    where: str,
    level: str,
) -> None:
    arguments = ["run", f"--log-level={level}"]
    if where == "flag":
        arguments += ["--token", SECRET]
    elif where == "environment":
        monkeypatch.setenv("CONSUL_HTTP_TOKEN", SECRET)
    else:
        (tmp_path / ".env").write_text(f"CONSUL_HTTP_TOKEN={SECRET}\n")
        arguments += ["--env-file=.env"]
    gateway(failing(RuntimeError(f"header X-Consul-Token: {SECRET}")))
    assert execute(arguments) == 1
    out, err = capsys.readouterr()
    assert "X-Consul-Token: ********" in err
    assert SECRET not in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", f"--tokn={SECRET}"],
        ["run", "-token", "=", SECRET],
        ["run", SECRET],
        ["config", "--register=" + SECRET],
        ["--token", SECRET, "run"],
        [f"-token={SECRET}", "run"],
    ],
)
def test_a_usage_error_is_one_line_with_a_hint_and_repeats_no_value(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert execute(arguments) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("meshgate")
    assert lines[1].startswith("Try 'meshgate")
    assert SECRET not in out + err


def test_a_mistyped_flag_is_told_its_neighbour(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", "-adress=:1"]) == 2
    assert "--address" in capsys.readouterr().err


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([]) == 2
    assert "Ask the running gateway:" in capsys.readouterr().err


def test_a_wrong_setting_ends_every_command_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHGATE_DRAIN_TIMEOUT", "long")
    for arguments in (["run"], ["config"], ["routes"], ["explain", "x"], ["policy"]):
        assert execute(arguments) == 2
        assert capsys.readouterr().err == (
            "meshgate: MESHGATE_DRAIN_TIMEOUT='long' (from the environment): "
            "must be a duration such as 500ms, 15s or 1h\n"
        )


def test_all_wrong_settings_are_told_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"KEEPALIVE": "1x", "WORKERS": "0", "FOO": "1", "STATE_DIRECTORY": "/x"}.items():
        monkeypatch.setenv(f"MESHGATE_{name}", value)
    assert execute(["run", "--drain-timeout=long"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1].partition("=")[0] for line in lines] == [
        f"MESHGATE_{name}" for name in ("FOO", "STATE_DIRECTORY", "KEEPALIVE", "DRAIN_TIMEOUT", "WORKERS")
    ]
    assert lines[1].endswith("did you mean MESHGATE_STATE_DIR?")


def test_config_shows_values_and_origins_and_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"CONSUL_HTTP_TOKEN={SECRET}\nMESHGATE_WORKERS=3\n")
    monkeypatch.setenv("MESHGATE_ADDRESS", ":9443")
    assert execute(["config", "--service=gw", "-env-file", ".env"]) == 0
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["NAME"] == ["VALUE", "ORIGIN"]
    assert rows["MESHGATE_SERVICE"] == ["gw", "flag"]
    assert rows["MESHGATE_PROXY_ID"] == ["gw", "default"]
    assert rows["MESHGATE_ADDRESS"] == [":9443", "environment"]
    assert rows["MESHGATE_WORKERS"] == ["3", ".env"]
    assert rows["MESHGATE_WAN_ADDRESS"] == ["-", "default"]
    assert rows["CONSUL_HTTP_TOKEN"] == ["********", ".env"]
    assert SECRET not in out + err
    assert err == ""


def test_config_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["config", "--json", "--token", SECRET]) == 0
    out = capsys.readouterr().out
    values = json.loads(out)
    assert values["MESHGATE_ADDRESS"] == {"value": ":8443", "origin": "default"}
    assert values["MESHGATE_STATE_DIR"] == {"value": None, "origin": "default"}
    assert values["CONSUL_HTTP_TOKEN"] == {"value": "********", "origin": "flag"}
    assert SECRET not in out


def test_config_prints_the_example_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["config", "--env-example"]) == 0
    assert capsys.readouterr().out == env_example()


def test_config_passes_on_the_warnings_of_the_consul_client(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_SSL", "maybe")
    assert execute(["config"]) == 0
    assert capsys.readouterr().err == "note: CONSUL_HTTP_SSL is no boolean and is ignored: 'maybe'\n"


def test_config_says_when_consuls_settings_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["config", "--client-cert=/x.pem"]) == 2
    out, err = capsys.readouterr()
    assert "CONSUL_CLIENT_CERT" in out
    assert err == "meshgate: both client certificate and key must be set, CONSUL_CLIENT_KEY is missing\n"


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--address=192.0.2.77:8443", "cannot be bound here"), ("--token-file=/nowhere/token", "/nowhere/token")],
)
def test_config_exits_with_2_where_run_would_refuse(flag: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["config", flag]) == 2
    assert said in capsys.readouterr().err


def test_policy_is_for_the_service_of_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["policy", "--service=edge-gateway"]) == 0
    out = capsys.readouterr().out
    assert 'service "edge-gateway"' in out
    assert out.endswith("}\n")


@pytest.mark.parametrize(
    "arguments", [["policy", "--service", 'a"b'], ["run", "--service", 'a b"c'], ["run", "--proxy-id", "a b"]]
)
def test_a_name_that_consul_would_cut_or_misread_is_a_wrong_setting(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert execute(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"(from {arguments[1]}): must be " in err
    assert "without spaces" in err


def test_what_doctor_found_is_counted_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    def counts(*found: Status) -> str:
        _show_findings([Finding("a check", status, "as it is", "do this") for status in found], Printer())
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [f"{found[0]:<8}a check: as it is", "        -> do this"]
        return lines[-1]

    assert counts(Status.WARNING, Status.OK, Status.FAILED) == "1 ok, 1 warning, 1 failed"
    assert counts(Status.WARNING, Status.WARNING) == "0 ok, 2 warnings, 0 failed"


def test_demo_passes_on_whether_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("tests.harness.show")
    seen = []
    module.__dict__["run_demo"] = lambda *, once: seen.append(once)
    monkeypatch.setitem(sys.modules, "tests.harness.show", module)
    assert [execute(["demo", "--once"]), execute(["demo"])] == [0, 0]
    assert seen == [True, False]


def test_demo_says_where_to_get_it_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("meshgate.__file__", str(tmp_path / "lib" / "site-packages" / "meshgate" / "__init__.py"))
    assert execute(["demo", "--once"]) == 1
    assert capsys.readouterr().err == (
        "meshgate: the demo is not part of an installed meshgate: clone its repository and run scripts/demo\n"
    )


def test_the_installed_command_exits_with_2_for_a_wrong_name() -> None:
    result = meshgate("config", env={"MESHGATE_ADRESS": ":1"})
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr
        == "meshgate: MESHGATE_ADRESS (from the environment) is not a setting; did you mean MESHGATE_ADDRESS?\n"
    )


def test_the_installed_command_prints_where_it_cannot_encode(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MESHGATE_STATE_DIR=/tmp/ü\n", "utf-8")
    result = meshgate("config", env={"PYTHONIOENCODING": "ascii", "MESHGATE_ENV_FILE": str(tmp_path / ".env")})
    assert result.returncode == 0
    assert r"/tmp/\xfc" in result.stdout


def test_a_closed_pipe_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [sys.executable, "-m", "meshgate", "config"], stdout=writing, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writing)
        assert "Traceback" not in process.communicate(timeout=30)[1]


def test_an_admin_address_that_is_taken_is_one_line_before_any_worker_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as lent:
        admin, address = (f"127.0.0.1:{each.getsockname()[1]}" for each in (taken, lent))
        lent.close()
        ended = subprocess.run(
            [sys.executable, "-m", "meshgate", "run", f"--admin-bind={admin}", f"--address={address}"],
            env={name: value for name, value in os.environ.items() if not name.startswith(("CONSUL_", "MESHGATE_"))},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (1, "")
    told = ended.stderr.splitlines()
    assert told[-1] == f"meshgate: cannot bind the admin address {admin}: Address already in use"
    assert not [line for line in told if "killed" in line or "relay worker ended" in line]


def test_ctrl_c_of_the_real_process_exits_with_130(tmp_path: Path) -> None:
    code = (
        "import sys, types, time; m = types.ModuleType('meshgate.app.composition_root');"
        "m.run_gateway = lambda settings, taken: (print('up', flush=True), time.sleep(30));"
        "sys.modules['meshgate.app.composition_root'] = m; sys.argv[1:] = ['run'];"
        "from meshgate.app.cli.main import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read().strip() == ""


def test_the_entry_point_exits_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["meshgate", "run", "--nonsense"])
    with pytest.raises(SystemExit) as caught:
        cli_module.main()
    assert caught.value.code == 2
