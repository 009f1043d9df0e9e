"""What the tests of the demo's real parts ask of processes and folders."""

from pathlib import Path

from tests.harness.cluster import Federation


def gone(pid: int) -> bool:
    """Whether no such process runs; one that ended and was not collected by its new parent does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def pids(federation: Federation) -> list[int]:
    return [consul.child.pid for consul in federation.datacenters]
