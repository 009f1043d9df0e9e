"""What the pages name exists: tests, files, commands, flags, settings, defaults, metrics, paths, headings, numbers."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import click

from meshgate.adapters import state
from meshgate.adapters.consul import watch
from meshgate.adapters.consul.api import credentials, records
from meshgate.adapters.consul.peerings import ABSENT_POLL
from meshgate.adapters.consul.retry import LONGEST_PAUSE
from meshgate.adapters.consul.watch_scheduler import AT_A_TICK, IN_USE, SUMMARY_PACE, TICK
from meshgate.adapters.relay import Limits, hand_over, messages, on_demand, overload, pool, stream
from meshgate.adapters.relay.counters import EndpointHistory
from meshgate.adapters.relay.pump import HEAVY_READ_BYTES, HELD_BYTES, PIPE_BYTES
from meshgate.adapters.relay.stream_setup import MAX_ATTEMPTS, RACE_SECONDS
from meshgate.adapters.relay.worker_process import (
    _GROWN,
    _MOST_STDERR_BYTES,
    ANSWER_ROOM,
    LINES_AT_ONCE,
    LINES_PER_SECOND,
    LOOKS,
    WorkerPolicy,
)
from meshgate.app.admin import explain_page, whatif_page
from meshgate.app.admin.admin_pages import admin_routes
from meshgate.app.admin.metrics import MAX_HISTOGRAMS, Metrics
from meshgate.app.cli import gateway_commands
from meshgate.app.cli.main import cli
from meshgate.app.gateway.draining import PROPAGATION_SECONDS
from meshgate.app.gateway.gateway import ONE_STOP_SECONDS
from meshgate.app.gateway.last_known import AGENT_PATIENCE, CATALOG_PATIENCE, REMOTES_PATIENCE
from meshgate.app.gateway.on_demand_discovery import OF_A_CLIENT, OF_ALL_CLIENTS, PACE
from meshgate.app.gateway.stream_observer import KEPT
from meshgate.app.gateway.upgrade import TRIAL_SECONDS
from meshgate.app.gateway.upgrade_record import PATIENCE
from meshgate.app.settings.setting_table import BY_NAME
from meshgate.core import hello
from meshgate.core.callers import MOST_NAMED
from meshgate.core.durations import parse_duration
from meshgate.core.outlier_detection import FIRST_PROBE_SECONDS, LONGEST_WAIT_SECONDS
from tests.app.gateway_double import GatewayDouble
from tests.app.test_metrics import full_gateway
from tests.docs.test_promises import NAMED, exists, page
from tests.promtool import recorded

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in (
        "README.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "docs/*.md",
        "docs/consul/*.md",
        "deploy/consul/*.md",
    )
    for path in ROOT.glob(pattern)
    if "{include}" not in path.read_text()
)
# Names of other programs that nothing here uses, and one that is written wrongly on purpose.
OTHERS = frozenset((
    "-adress", "-domain", "-max-token-ttl", "-token-locality",
    "max_request_headers_kb", "raw_exec", "start_join_wan", "tcp_wmem", "xds_fetch_timeout_ms",
))  # fmt: skip
UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "kib": 1024.0, "": 1.0}


def code(text: str) -> Iterator[str]:
    """What stands in backticks, and the lines of blocks, without their comments; a line that goes on is one."""
    text = text.replace("\\\n", " ")
    yield from (" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))
    for line in text.splitlines():
        if line.startswith("    "):
            yield re.sub(r"\s{2,}#.*", "", line.strip().removeprefix("$ "))


@cache
def prose() -> dict[str, str]:
    return {name: page(name) for name in PAGES}


def missing(what: Callable[[str], Iterator[str]]) -> list[str]:
    return [f"{name}: {found}" for name, text in prose().items() for found in what(text)]


def test_tests() -> None:
    def unknown(text: str) -> Iterator[str]:
        for path, test in NAMED.findall(text):
            if not exists(ROOT / "tests" / path.removeprefix("tests/"), test):
                yield f"{path}::{test}"

    assert missing(unknown) == []


def test_folders_of_the_examples() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", page("docs/deploy.md"), re.MULTILINE)
    folders = re.findall(r"`([\w/-]+)/`", " ".join(rows))
    assert {folder for folder in folders if not (ROOT / "deploy" / folder).is_dir()} == set()
    assert {path.name for path in (ROOT / "deploy").iterdir()} == {*folders, "man", "consul"} - {
        "kubernetes/consul-k8s"
    }


def test_modules() -> None:
    """Below src/meshgate, where a page writes the ring in front."""

    def unknown(text: str) -> Iterator[str]:
        for path in re.findall(r"`((?:core|adapters|app)/[\w/]+\.(?:py|json|js))`", text):
            if not (ROOT / "src" / "meshgate" / path).is_file() and not (ROOT / "tests" / path).is_file():
                yield path

    assert missing(unknown) == []


def test_commands_and_their_flags() -> None:
    context = click.Context(cli)

    def unknown(text: str) -> Iterator[str]:
        for line in code(text):
            for rest in re.findall(r"(?:^|[\s/(=])meshgate\s+([^|&;)>]*)", line):
                words = rest.split()
                if not words or not re.fullmatch(r"[a-z-]+", words[0]):
                    continue
                command = cli if words[0].startswith("-") else cli.get_command(context, words[0])
                # "meshgate && cd …" and "stop meshgate" are no calls; a word that is no command is.
                if command is None:
                    yield f"meshgate {words[0]}"
                    continue
                known = {name for each in command.get_params(context) for name in (*each.opts, *each.secondary_opts)}
                used = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--"]
                yield from (f"meshgate {words[0]} {flag}" for flag in used if flag not in known)

    assert missing(unknown) == []


def test_every_command_is_on_a_page() -> None:
    called = {name for text in prose().values() for name in re.findall(r"\bmeshgate ([a-z]+)\b", text)}
    # `scripts/demo` runs that one, in a clone.
    assert set(cli.list_commands(click.Context(cli))) - called == {"demo"}


def test_scripts_and_their_flags() -> None:
    def unknown(text: str) -> Iterator[str]:
        for line in code(text):
            for name, rest in re.findall(r"(?:^|\s)scripts/([\w-]+)(?![\w/.-])([^|&;)]*)", line):
                script = ROOT / "scripts" / name
                if not script.is_file():
                    yield f"scripts/{name}"
                    continue
                packages = re.findall(r"-m (\w+)", script.read_text())
                sources = [script, *(path for each in packages for path in (ROOT / "scripts" / each).rglob("*.py"))]
                said = "".join(path.read_text() for path in sources)
                yield from (f"scripts/{name} {flag}" for flag in re.findall(r"(--[\w-]+)", rest) if flag not in said)

    assert missing(unknown) == []


def test_flags_by_themselves() -> None:
    """`--limit` and the like: of a command, or of something else that the examples or the scripts call so."""
    context = click.Context(cli)
    ours = {
        option
        for name in cli.list_commands(context)
        for parameter in (cli.get_command(context, name) or cli).get_params(context)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    others = "".join(
        path.read_text(errors="replace")
        for folder in ("scripts", "deploy")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".md", ".pyc")
    )

    def unknown(text: str) -> Iterator[str]:
        for flag in re.findall(r"`(--?[a-z][\w-]+)(?:[= ][^`]*)?`", text):
            if not {flag, f"-{flag}"} & (ours | OTHERS) and flag not in others:
                yield flag

    assert missing(unknown) == []


def test_settings() -> None:
    def unknown(text: str) -> Iterator[str]:
        yield from (name for name in re.findall(r"\bMESHGATE_[A-Z_]*[A-Z]\b", text) if name not in BY_NAME)
        for name, value in re.findall(r"\b(MESHGATE_[A-Z_]+)=([^\s`|…]+)", text):
            try:
                BY_NAME[name].parse(value)
            except ValueError as error:
                yield f"{name}={value}: {error}"

    assert missing(unknown) == []


def test_defaults_that_stand_beside_their_settings() -> None:
    """`MESHGATE_CATALOG_WATCHES` (100), or 15 s, `MESHGATE_HANDSHAKE_TIMEOUT`."""
    number = r"(\d[\d,.]*) ?(ms|s|h|KiB)?\b"
    found = []
    for name, text in prose().items():
        flat = " ".join(text.split())
        beside = re.findall(rf"`(MESHGATE_\w+)` (?:\()?{number}(?!/)", flat)
        before = [(setting, *value) for *value, setting in re.findall(rf"\| {number}, `(MESHGATE_\w+)`", flat)]
        found += [(name, setting, value.replace(",", ""), unit or "") for setting, value, unit in (*beside, *before)]
    assert len(found) >= 10
    for name, setting, value, unit in found:
        default = BY_NAME[setting].default
        assert isinstance(default, str)
        seconds = float(default) if default.isdigit() else parse_duration(default)
        assert float(value) * UNITS[unit.lower()] == seconds, f"{name}: {setting} {value} {unit}"


async def test_metrics_and_their_labels() -> None:
    labels: dict[str, set[str]] = {}
    for family in await Metrics(full_gateway()).families():
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
        labels.setdefault(family.name, set()).update(label for sample in family.samples for label in sample.labels)

    def unknown(text: str) -> Iterator[str]:
        for name, matchers in re.findall(r"\b(meshgate_[a-z_]*[a-z])\b(?!…)(?:\{([^}]*)\})?", text):
            wrong = (
                {part.partition("=")[0] for part in matchers.split(",") if part} - labels.get(name, set()) - {"worker"}
            )
            if name not in labels or wrong:
                yield f"{name}{wrong or ''}"
        yield from (name for name in re.findall(r"\bmeshgate:\w[\w:]*", text) if name not in recorded())

    assert missing(unknown) == []


def test_paths_of_the_admin_address() -> None:
    gateway = GatewayDouble()
    served = {path for _, path in admin_routes(gateway, Metrics(gateway))}
    elsewhere = r"/(?:v1|etc|opt|var|usr|tmp|proc|dev|graceful)\b.*|/\d+"

    def unknown(text: str) -> Iterator[str]:
        for path in re.findall(r"`(?:(?:GET|POST|PUT) )?(/[\w./-]*)(?:\?[^`]*)?`", text):
            if path not in served and not re.fullmatch(elsewhere, path):
                yield path
        yield from (path for path in re.findall(r"localhost:19000(/[\w/]*)", text) if path not in served)

    assert missing(unknown) == []


def test_words_of_the_product() -> None:
    """What is written as a name with an underscore is one in the sources, the examples or a recording of Consul's."""
    known = "".join(
        path.read_text(errors="replace")
        for folder in ("src", "deploy", "scripts", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".js", ".yml", ".yaml", ".hcl", ".service", ".json", ".jsonl", ".c")
        and path.parent != Path(__file__).parent
    )

    def unknown(text: str) -> Iterator[str]:
        for word in re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", text):
            if word not in known and word not in OTHERS:
                yield word

    assert missing(unknown) == []


def test_headings_that_are_linked_to() -> None:
    def slugs(path: Path) -> set[str]:
        headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def unknown(text: str) -> Iterator[str]:
        for target, heading in re.findall(r"\]\(((?!https?:)[^)#]*)#([^)]+)\)", text):
            wanted = [ROOT / target, ROOT / "docs" / target] if target else [ROOT / name for name in PAGES]
            if not any(heading in slugs(path) for path in wanted if path.is_file()):
                yield f"{target}#{heading}"

    assert missing(unknown) == []


def test_numbers_that_are_counted_elsewhere() -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT / "scripts") + os.pathsep + str(ROOT)}
    count = "from soaking.faults import FAULTS; print(len(FAULTS))"
    kinds = subprocess.run([sys.executable, "-c", count], env=environ, capture_output=True, text=True, check=True)
    text = " ".join(page("docs/reliability.md").split())
    assert f"faults of {kinds.stdout.strip()} kinds" in text
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()
    assert {*re.findall(r"Python (3\.\d+)(?:\+| or newer)", "".join(prose().values()))} == {"3.11"}


def test_numbers_that_the_code_has() -> None:
    for name, said in (
        ("SECURITY.md", f"limited to {messages.LARGEST >> 20} MB per message"),
        ("SECURITY.md", f"{LINES_AT_ONCE} log lines and then {LINES_PER_SECOND:g} a second"),
        ("SECURITY.md", f"A log line has at most {messages.LONGEST_LINE >> 10} kB"),
        ("SECURITY.md", f"is larger than {state.LARGEST >> 20} MB"),
        ("docs/comparison.md", f"up to {MAX_ATTEMPTS} endpoints are tried"),
        ("docs/comparison.md", f"(choices up to {records._MOST_CHOICES})"),
        ("docs/comparison.md", f"(after {FIRST_PROBE_SECONDS:g} s, then up to {LONGEST_WAIT_SECONDS:g} s apart)"),
        ("docs/hand-over.md", f"up to {hand_over.BATCH_STREAMS} streams, {hand_over._MOST_DESCRIPTORS} descriptors"),
        ("docs/observability.md", f"The first {MAX_HISTOGRAMS} destinations that had streams have their own"),
        ("docs/operations.md", f"gets {OF_A_CLIENT[0]:g} a second, with bursts of {OF_A_CLIENT[1]}"),
        ("docs/operations.md", f"together get {OF_ALL_CLIENTS[0]:g} a second, with bursts of {OF_ALL_CLIENTS[1]}"),
        ("docs/operations.md", f"(a tenth of `MESHGATE_DRAIN_TIMEOUT`, at most {PROPAGATION_SECONDS:g} s)"),
        ("docs/operations.md", f"waits for the answer, up to {stream.UNANSWERED_SECONDS:g} s"),
        ("docs/operations.md", f"short answer (up to {stream.SHORT_ANSWER_BYTES >> 10} KiB)"),
        ("docs/operations.md", f"{AT_A_TICK} of those that wait are read every {TICK:g} seconds"),
        ("docs/reliability.md", f"does not answer within {AGENT_PATIENCE} s of a start"),
        ("docs/reliability.md", f"has no catalog for another {CATALOG_PATIENCE:g} s"),
        ("docs/reliability.md", f"at most {HELD_BYTES >> 20} MiB are held for them"),
        ("docs/reliability.md", f"joins after {RACE_SECONDS * 1000:g} ms without an answer"),
        ("docs/reliability.md", f"more than {hello._MOST_RECORDS} records or {hello._MOST_EXTENSIONS} extensions"),
        ("docs/troubleshooting.md", f"older than the last {KEPT} of each end"),
    ):
        assert said in " ".join(page(name).split()), (name, said)


def test_numbers_in_words_are_those_of_the_code() -> None:
    policy = WorkerPolicy()
    for name, said, number, expected in (
        ("SECURITY.md", "and 300,000 entries and kB in a collected answer", ANSWER_ROOM, 300_000),
        ("SECURITY.md", "keeps 8 kB of its standard error", messages.LONGEST_LINE, 8 << 10),
        ("SECURITY.md", "1 MB ends the worker", _MOST_STDERR_BYTES, 1 << 20),
        ("deploy/consul/peering.md", "is asked again every five minutes", ABSENT_POLL, 300),
        ("docs/hand-over.md", "The parent looks every 20 seconds", policy.look, 20),
        ("docs/hand-over.md", "when three looks in a row find the same", LOOKS, 3),
        ("docs/hand-over.md", "and about 1 MB of held bytes", hand_over.BATCH_BYTES, 1 << 20),
        ("docs/hand-over.md", "After three in a row", hand_over._DECLINED_IN_A_ROW, 3),
        ("docs/hand-over.md", "one of them is silent for ten seconds", 2 * hand_over.PATIENCE, 10),
        ("docs/hand-over.md", "is ended by the parent after five", policy.silent, 5),
        ("docs/observability.md", "up to 100,000 per relay worker", messages.MOST_STREAMS, 100_000),
        ("docs/observability.md", "For each of the last 20,000 endpoints", EndpointHistory.MOST, 20_000),
        ("docs/observability.md", "answer within 3 seconds is", whatif_page._PATIENCE, 3),
        ("docs/observability.md", "(with more than three,", MOST_NAMED, 3),
        ("docs/observability.md", "those refused in the last hour first", explain_page._LATELY, 3600),
        ("docs/operations.md", "more than a second after the first", ONE_STOP_SECONDS, 1),
        ("docs/operations.md", "within a second after they change", credentials._TLS_POLL, 1),
        ("docs/operations.md", "and over 20 more", pool._A_FEW, 20),
        ("docs/operations.md", "stays above it for a minute", LOOKS * policy.look, 60),
        ("docs/operations.md", "if it has half more than it needed", _GROWN, 1.5),
        ("docs/operations.md", "(with streams in the last five minutes", IN_USE, 300),
        ("docs/operations.md", "does not answer within a second", pool.LOOKUP_SECONDS, 1),
        ("docs/operations.md", "show a change (within 30 seconds)", SUMMARY_PACE, 30),
        ("docs/operations.md", "for the same name at most four times a second", 1 / PACE, 4),
        ("docs/operations.md", "up to 4.5 seconds", on_demand.WAIT_SECONDS * on_demand._WITHOUT_ROUTE, 4.5),
        ("docs/operations.md", "whenever it changes, at most twice a second", 1 / watch.PACE, 2),
        ("docs/reliability.md", "with jitter, up to 30 s", LONGEST_PAUSE, 30),
        ("docs/reliability.md", "Once 15/16 of", Limits(max_connections=1600).overload_from, 1500),
        ("docs/reliability.md", "if that is a second or more", overload.GRACE_SECONDS, 1),
        ("docs/reliability.md", "four times as long while the endpoint", stream._ENDPOINTS_TURN, 4),
        ("docs/reliability.md", "from one second on", overload.SECOND_FLIGHT_SECONDS, 1),
        ("docs/reliability.md", "has not found within a minute", REMOTES_PATIENCE, 60),
        ("docs/reliability.md", "at most once a second, and confirmed", state.PACE, 1),
        ("docs/reliability.md", "confirmed every five minutes", state.CONFIRM, 300),
        ("docs/troubleshooting.md", "a read of up to 64 KiB", HEAVY_READ_BYTES, 64 << 10),
        ("docs/troubleshooting.md", "a pipe of up to 1 MiB", PIPE_BYTES, 1 << 20),
        ("docs/upgrade.md", "every five seconds that it still waits", gateway_commands._PROGRESS, 5),
        ("docs/upgrade.md", "no proper answer within a minute", TRIAL_SECONDS, 60),
        ("docs/upgrade.md", "is not in charge after 20 s", PATIENCE, 20),
    ):
        assert said in " ".join(page(name).split()), (name, said)
        assert number == expected, (name, said)


def test_every_number_of_the_performance_page_has_a_date() -> None:
    """But for what the benchmark writes itself, and for what holds of any run."""
    text = re.sub(r"<!-- bench:(\w+) -->.*?<!-- /bench:\1 -->", "", page("docs/performance.md"), flags=re.DOTALL)
    blocks = [block for section in text.split("\n## ") for block in re.split(r"\n\n(?!- )", section)]
    measured = [each for each in blocks if re.search(r"\d (?:µs|ms|MB|kB|%|instructions|of a core)|\b0\.\d\d\b", each)]
    assert len(measured) > 5
    undated = [block for block in measured if not re.search(r"20\d\d-\d\d-\d\d", block)]
    assert [block.partition("\n")[0] for block in undated if "work items" not in block] == []
