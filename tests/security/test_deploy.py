"""The unit and the image run meshgate without privileges, and leave it what it needs."""

import configparser
import re
import shutil
import stat
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from meshgate.app.settings.setting_table import BY_NAME
from meshgate.core.durations import parse_duration

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "meshgate.service"
OLDER = DEPLOY / "systemd" / "before-253.conf"
UPGRADING = DEPLOY / "systemd" / "upgrade-at-reload.conf"
IMAGE = DEPLOY / "docker" / "Dockerfile"

Sections = dict[str, dict[str, list[str]]]


def unit() -> Sections:
    """The unit as systemd reads it: a key may come several times."""
    sections: Sections = {}
    current: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), defaultdict(list))
            continue
        key, separator, value = line.partition("=")
        assert separator, line
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]*", key), line
        current[key].append(value)
    return sections


def service(key: str) -> str:
    (value,) = unit()["Service"][key]
    return value


def systemd_version(analyze: str) -> int:
    said = subprocess.run([analyze, "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.split()[1])


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", IMAGE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


@pytest.mark.parametrize("beside", [(), (UPGRADING,)], ids=["alone", "upgrading"])
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, beside: tuple[Path, ...]) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        # Without the tool: at least what any parser of such files would refuse.
        configparser.ConfigParser(strict=False, interpolation=None).read_string(UNIT.read_text())
        assert set(unit()) == {"Unit", "Service", "Install"}
        return
    program = tmp_path / "meshgate"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    installed = tmp_path / UNIT.name
    installed.write_text(UNIT.read_text().replace("/opt/meshgate/bin/meshgate", str(program)))
    drop_ins = tmp_path / f"{UNIT.name}.d"
    drop_ins.mkdir()
    for each in beside:
        (drop_ins / each.name).write_text(each.read_text().replace("/opt/meshgate/bin/meshgate", str(program)))
    if systemd_version(analyze) < 253:
        shutil.copy(OLDER, drop_ins)
        # Verified in its old form: this systemd warns of a type that a drop-in then replaces.
        installed.write_text(installed.read_text().replace("Type=notify-reload\n", ""))
    ended = subprocess.run([analyze, "--man=no", "verify", str(installed)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


def test_a_reload_that_upgrades_is_none_of_the_sandbox() -> None:
    """There the command could not be told from a relay worker, whom the admin address refuses (`confined_clients`)."""
    reloads = [line for line in UPGRADING.read_text().splitlines() if line.startswith("ExecReload=")]
    assert reloads == ["ExecReload=", "ExecReload=+/opt/meshgate/bin/meshgate upgrade"]


def test_systemd_sees_a_service_with_little_exposure() -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None or systemd_version(analyze) < 250:
        # Older ones cannot judge a file. What would make most of the difference is tested below in any case.
        assert len(unit()["Service"]) > 30
        return
    command = [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(UNIT)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify-reload"),
        ("NotifyAccess", "main"),
        ("User", "meshgate"),
        ("KillMode", "mixed"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("AmbientCapabilities", ""),
        ("CapabilityBoundingSet", ""),
        ("LimitCORE", "0"),
        ("StateDirectory", "meshgate"),
        ("LogsDirectory", "meshgate"),
        ("UMask", "0077"),
    ],
)
def test_unit_says(key: str, value: str) -> None:
    assert service(key) == value


def test_unit_gives_the_drain_its_time_and_the_watchdog_a_margin() -> None:
    drain = BY_NAME["MESHGATE_DRAIN_TIMEOUT"].default_text()
    assert parse_duration(service("TimeoutStopSec")) >= parse_duration(drain) + 10
    assert parse_duration(service("WatchdogSec")) >= 10
    # A gateway that waits for Consul is not to be restarted for it.
    assert service("TimeoutStartSec") == "infinity"


def test_an_older_systemd_gets_a_reload_that_it_knows() -> None:
    lines = [line for line in OLDER.read_text().splitlines() if not line.startswith("#")]
    assert lines == ["[Service]", "Type=notify", "ExecReload=/bin/kill -HUP $MAINPID"]


def test_unit_names_settings_that_exist_and_holds_no_token() -> None:
    variables = dict(each.split("=", 1) for each in unit()["Service"]["Environment"])
    assert set(variables) <= set(BY_NAME)
    assert "CONSUL_HTTP_TOKEN" not in variables
    assert variables["CONSUL_HTTP_TOKEN_FILE"] == "/etc/meshgate/token"
    (user,) = [
        line.split()[1] for line in (UNIT.parent / "meshgate.sysusers").read_text().splitlines() if line[:2] == "u "
    ]
    assert user == service("User")


def test_image_has_two_stages_and_the_last_one_is_nobody_special() -> None:
    steps = instructions()
    stages = [at for at, (name, _) in enumerate(steps) if name == "FROM"]
    assert len(stages) == 2
    last = steps[stages[1] :]
    (user,) = [value for name, value in last if name == "USER"]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user), "numbers, so that an orchestrator can see it is not root"
    # Whatever is made after it is made by that user.
    names = [name for name, _ in last]
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])
    assert not [value for name, value in steps if name == "ADD"]
    copied = [value for name, value in last if name == "COPY"]
    assert copied == ["--from=build /opt/meshgate /opt/meshgate"]
    settings = " ".join(value for name, value in steps if name in ("ENV", "ARG", "LABEL"))
    assert "TOKEN" not in settings
    assert dict(last)["ENTRYPOINT"] == '["meshgate"]'
    assert dict(last)["CMD"] == '["run"]'


def test_base_of_the_image_is_named_by_its_digest() -> None:
    steps = instructions()
    defaults = dict(value.split("=", 1) for name, value in steps if name == "ARG")
    bases = [re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], value) for name, value in steps if name == "FROM"]
    assert len(bases) == 2
    assert [base for base in bases if not re.search(r"@sha256:[0-9a-f]{64}( AS \w+)?$", base)] == []


def test_image_is_built_of_the_sources_alone() -> None:
    copied = {
        word
        for name, value in instructions()
        if name == "COPY" and "--from" not in value
        for word in value.split()[:-1]
    }
    let_in = {line[1:] for line in (DEPLOY.parent / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let_in == {word.removeprefix("./") for word in copied}
    assert "*" in (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    for path in let_in:
        assert (DEPLOY.parent / path).exists()


def test_audit_can_be_run() -> None:
    assert (DEPLOY.parent / "scripts" / "audit").stat().st_mode & stat.S_IXUSR


def test_workers_may_give_up_their_rights_under_the_unit() -> None:
    """The sets of system calls of systemd 252 have none of these."""
    allowed = {call for line in unit()["Service"]["SystemCallFilter"] if line[0] != "~" for call in line.split()}
    assert {"seccomp", "landlock_create_ruleset", "landlock_restrict_self"} <= allowed
