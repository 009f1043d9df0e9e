import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshgate.app.cli.main import cli


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


def complete(shell: str, words: str, cword: int) -> list[str]:
    """What the shell would be told for the word number `cword` of a line."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MESHGATE_", "CONSUL_"))}
    environ |= {"_MESHGATE_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(cword)}
    script = Path(sys.executable).with_name("meshgate")
    ended = subprocess.run([script], env=environ, capture_output=True, text=True, timeout=30, check=True)
    return [line.partition(",")[2] for line in ended.stdout.splitlines()]


def test_commands_and_flags_are_completed() -> None:
    assert complete("bash", "meshgate dr", 1) == ["drain"]
    assert complete("bash", "meshgate run --max-conn", 2) == ["--max-connections", "--max-connections-per-client"]
    assert complete("bash", "meshgate completion ", 2) == ["bash", "zsh", "fish"]


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
