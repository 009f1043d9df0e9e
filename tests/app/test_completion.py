import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshgate.app.cli.main import cli, execute
from meshgate.core.routes import RouteKind

from .gateway_double import GatewayDouble, refused, route


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_meshgate_itself(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell], prog_name="meshgate")
    assert result.exit_code == 0
    assert f"_MESHGATE_COMPLETE={shell}_complete" in result.output
    binary = shutil.which(shell)
    if binary is not None:
        subprocess.run([binary, "-n"], input=result.output, text=True, check=True, timeout=30)


@pytest.mark.parametrize("arguments", [[], ["tcsh"], ["bash", "more"]])
def test_a_shell_must_be_named(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, ["completion", *arguments]).exit_code == 2


def test_the_shells_are_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["completion"]) == 2
    said, _hint = capsys.readouterr().err.splitlines()
    assert said == "meshgate completion: Missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish"


def answered(shell: str, words: str, cword: int, **more: str) -> list[str]:
    """The lines that the shell would be told for the word number `cword` of a line, and nothing else."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MESHGATE_", "CONSUL_"))}
    environ |= {"_MESHGATE_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(cword)} | more
    script = Path(sys.executable).with_name("meshgate")
    ended = subprocess.run([script], env=environ, capture_output=True, text=True, timeout=30, check=True)
    assert ended.stderr == ""
    return ended.stdout.splitlines()


def complete(shell: str, words: str, cword: int, **more: str) -> list[str]:
    return [line.partition(",")[2] for line in answered(shell, words, cword, **more)]


def test_commands_and_flags_are_completed() -> None:
    assert complete("bash", "meshgate dr", 1) == ["drain"]
    assert complete("bash", "meshgate run --max-connections", 2) == [
        "--max-connections",
        "--max-connections-per-client",
    ]
    assert complete("bash", "meshgate completion ", 2) == ["bash", "zsh", "fish"]
    assert complete("bash", "meshgate help pol", 2) == ["policy"]


def test_a_flag_with_one_dash_is_completed_with_one() -> None:
    assert complete("bash", "meshgate explain -ad", 2) == ["-admin-bind"]


def test_values_are_completed_also_behind_arguments_and_one_dash() -> None:
    assert complete("bash", "meshgate probe web --via ", 4) == ["lan", "wan"]
    assert complete("bash", "meshgate run -log-level d", 3) == ["debug"]
    assert complete("bash", "meshgate connections -sort ", 3) == ["rate", "bytes", "age"]
    assert complete("bash", "meshgate run --access-log std", 3) == ["stdout", "stderr"]
    assert answered("bash", "meshgate run --token-file /etc/ho", 3) == ["file,/etc/ho"]
    assert answered("bash", "meshgate run -state-dir ", 3) == ["file,"]


def test_names_are_those_that_the_gateway_knows_and_what_it_refused_lately_comes_first() -> None:
    recent = [(time.time(), refused("we.example")), (time.time() - 7200, refused("we.old"))]
    gateway = GatewayDouble(route("web"), route("weather"), route("dc2", RouteKind.DATACENTER), recent=recent)
    with gateway.serving() as address:
        asked = f"meshgate explain --admin-bind {address} "
        assert complete("bash", f"{asked}we", 4) == ["we.example", "weather", "web"]
        assert complete("bash", f"{asked}web.", 4) == [route("web").sni]
        assert complete("bash", f"{asked}web --dc ", 6) == ["dc2"]
        assert complete("bash", f"meshgate whatif --admin-bind {address} --dc ", 5) == ["dc2"]
        assert complete("bash", "meshgate routes web", 2, MESHGATE_ADMIN_BIND=address) == ["web"]
        asked = "meshgate connections --destination wea"
        assert complete("bash", asked, 3, MESHGATE_ADMIN_BIND=address) == ["weather"]
    # The gateway is gone, which is no matter for a prompt.
    assert complete("bash", f"{asked}we", 4) == [""]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(CliRunner().invoke(cli, ["completion", "bash"], prog_name="meshgate").output)
    folder = Path(sys.executable).parent
    commands = f"""
        source {script}
        COMP_WORDS=(meshgate ex) COMP_CWORD=1
        _meshgate_completion meshgate
        echo "${{COMPREPLY[@]}}"
    """
    environ = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", "--norc", "-c", commands], env=environ, capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout.split() == ["explain"]
