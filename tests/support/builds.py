"""Test-only builds: the daemon's own source with a few lines replaced, in a virtual environment of its own. What a
test takes away or takes over is never a flag of the product."""

import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import weave
from tests.support.daemon import COMMAND, Daemon
from tests.support.system import MODEL
from weave.sandbox import worker_files

# By file within weave/: the lines to replace, each of which must be there once, and what they become.
Changes = dict[str, list[tuple[str, str]]]
# Where others than root are to see a process's descriptors and memory in /proc. Root sees those of the product itself.
DUMPABLE: Changes = (
    {} if os.geteuid() == 0 else {"sandbox/hardening.py": [("prctl.set_dumpable(0)", "prctl.set_dumpable(1)")]}
)


def without(function: str) -> tuple[str, str]:
    """A module's function by name, which then does nothing."""
    start = f"\ndef {function}("
    return start, f"{start}*_: object, **__: object) -> None:\n    pass\n\n\ndef _replaced_{function}("


def build(changes: Changes, modules: dict[str, Path | str] | None = None, everywhere: str = "") -> tuple[str, ...]:
    """The command that starts it. `modules` are files to add, by their place in weave/; `everywhere` is run in each
    process before anything else."""
    folder = Path(tempfile.mkdtemp(prefix="weave-build-"))
    package = folder / "src" / "weave"
    shutil.copytree(Path(weave.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, replacements in changes.items():
        source = (package / name).read_text()
        for old, new in replacements:
            assert source.count(old) == 1, f"{name} has {source.count(old)} times {old!r}"
            source = source.replace(old, new)
        (package / name).write_text(source)
    for name, module in (modules or {}).items():
        (package / name).write_text(module if isinstance(module, str) else module.read_text())
    # Beside the source, as the worker may read all of its environment.
    environment = folder / "environment"
    packages = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "everywhere.py").write_text(everywhere)
    # The libraries stay where they are, and there the build's worker may read them, as the product's may.
    lines = [str(folder / "src"), *map(str, worker_files.packages(sys.path)), "import everywhere"]
    (packages / "build.pth").write_text("\n".join(lines) + "\n")
    # Without its second line the distribution's own libraries would be found too, of other versions than ours.
    settings = f"home = {Path(sys.base_prefix) / 'bin'}\ninclude-system-site-packages = false\n"
    (environment / "pyvenv.cfg").write_text(settings)
    (environment / "bin").mkdir()
    (environment / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    return (str(environment / "bin" / "python"), "-I", "-B", "-m", "weave.supervisor")


@functools.cache
def visible() -> tuple[str, ...]:
    """The command of a daemon whose descriptors and memory this user may see."""
    return build(DUMPABLE) if DUMPABLE else (str(COMMAND),)


def daemon_of(changes: Changes, config: str = MODEL, *, everywhere: str = "", **more: Any) -> Daemon:
    return Daemon(config, command=build(changes, everywhere=everywhere), **more).wait_until_serving()
