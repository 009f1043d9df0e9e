"""An installation of this package of its own: a virtual environment with a copy, whose version a test can choose."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import meshgate

_INIT = "__init__.py"


class Installation:
    """A copy of the package below `folder`; `python` is the path of its Python.

    Dependencies are those of the Python that runs the tests.
    """

    def __init__(self, folder: Path, version: str) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
        self.python = str(folder / "bin" / "python")
        library = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        self.package = library / "meshgate"
        source = Path(meshgate.__file__).parent
        # With what Python has compiled, which goes by a source's time and size; not what somebody is writing just now.
        shutil.copytree(source, self.package, ignore=shutil.ignore_patterns("*.pyc.*"))
        # A plain path: .pth files in there, which lead to the source, are not read.
        (library / "dependencies.pth").write_text("\n".join(filter(_has_packages, sys.path)) + "\n")
        self.version = version

    @property
    def version(self) -> str:
        return self._version

    @version.setter
    def version(self, version: str) -> None:
        """As another version that is installed in its place."""
        self._version = version
        self.replace(_INIT, f'__version__ = "{meshgate.__version__}"', f'__version__ = "{version}"')

    def replace(self, module: str, old: str, new: str) -> None:
        """Have the text of a module of the original changed, and nothing else of it."""
        source = (Path(meshgate.__file__).parent / module).read_text()
        assert old in source, f"{module} has no {old!r}"
        changed = self.package / module
        changed.write_text(source.replace(old, new))
        # Python tells what it has compiled from what it has not by second and size, which may be the same.
        for compiled in (changed.parent / "__pycache__").glob(f"{changed.stem}.*"):
            compiled.unlink()


def _has_packages(path: str) -> bool:
    """Whether it is a folder of installed packages: more than one, where a virtual environment builds on another."""
    return Path(path).name == "site-packages"
