"""Compiles the modules of the data path with mypyc, for whoever asks for it; the same sources run without it.

    HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip install .     installs a compiled build; it takes a C compiler
    python hatch_build.py FOLDER                       makes a copy of the package with compiled modules there, for
                                                       PYTHONPATH; does nothing where that is up to date

Which modules these are stands in pyproject.toml. What always holds: the same sources, tools and Python give the same
bytes, and no path of the machine that built them is in what they give.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_HERE: Final = Path(__file__).resolve().parent
_STAMP: Final = ".built-of"


class Compiled(BuildHookInterface[Any]):
    """The hook of the wheel. Its option `modules` names what is compiled, with dots."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            self.app.display_warning("an editable installation runs its sources: nothing is compiled")
            return
        self._folder = tempfile.TemporaryDirectory(prefix="meshgate-compiled-")
        folder = Path(self._folder.name)
        _compile(Path(self.root), folder, self.config["modules"])
        for library in folder.rglob("*.so"):
            build_data["force_include"][str(library)] = str(library.relative_to(folder))
        build_data["pure_python"] = False
        build_data["tag"] = _tag()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def _tag() -> str:
    """What the wheel runs on: this version of Python, and a C library as new as this one (PEP 600, PEP 656)."""
    from packaging.tags import sys_tags  # noqa: PLC0415  (hatchling brings it)

    # A plain `linux` says nothing of the C library.
    return str(next(each for each in sys_tags() if each.platform.startswith(("manylinux", "musllinux"))))


def _compile(root: Path, folder: Path, modules: list[str]) -> None:
    """Copy the package into a folder, and compile these modules of it beside their sources."""
    shutil.copytree(root / "src", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    with tempfile.TemporaryDirectory(prefix="meshgate-mypyc-") as cache:
        # What Python was linked with may name folders of this machine, where libraries would be looked for.
        linker = f"{sysconfig.get_config_var('CC') or 'cc'} -shared"
        environment = os.environ | {"PYTHONHASHSEED": "0", "MYPY_CACHE_DIR": cache, "LDSHARED": linker, "LDFLAGS": ""}
        command = [sys.executable, str(Path(__file__).resolve()), "--compile", *modules]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}\nmypyc, or the C compiler, has failed")
    shutil.rmtree(folder / "build")


def _run_mypyc(modules: list[str]) -> None:
    """In the folder that the package lies in, in a process of its own: setuptools takes hold of all of it."""
    from mypyc.build import mypycify  # noqa: PLC0415  (only here is it needed)
    from setuptools import setup  # noqa: PLC0415

    sys.argv[1:] = ["--quiet", "build_ext", "--inplace"]
    paths = [f"{module.replace('.', '/')}.py" for module in modules]
    setup(
        name="meshgate",
        packages=[],
        ext_modules=mypycify(["--config-file=", *paths], opt_level="2", debug_level="0", group_name="meshgate"),
    )


def _bring_up_to_date(folder: Path) -> None:
    options = tomllib.loads((_HERE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    modules = options["targets"]["wheel"]["hooks"]["custom"]["modules"]
    built_of = hashlib.sha256(f"{sys.version} {version_of('mypy')} {modules}".encode())
    for source in (Path(__file__), *sorted((_HERE / "src").rglob("*.py"))):
        built_of.update(f"{source} ".encode() + source.read_bytes())
    stamp = folder / _STAMP
    if stamp.exists() and stamp.read_text(encoding="ascii") == built_of.hexdigest():
        return
    shutil.rmtree(folder, ignore_errors=True)
    _compile(_HERE, folder, modules)
    stamp.write_text(built_of.hexdigest(), encoding="ascii")


if __name__ == "__main__":
    if sys.argv[1] == "--compile":
        _run_mypyc(sys.argv[2:])
    else:
        _bring_up_to_date(Path(sys.argv[1]))
