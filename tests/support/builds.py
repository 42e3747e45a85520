"""Test-only builds: the daemon's source, changed at named seams (seams.py), in its own virtual environment. The product
has no flag for what a test takes away or takes over."""

import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.daemon import COMMAND, Daemon
from tests.support.seams import PACKAGE, Seams, after, applied
from tests.support.system import MODEL
from weave.sandbox import worker_files

# Lets users other than root see a process's descriptors and memory in /proc. Root sees those of the product itself.
DUMPABLE: Seams = () if os.geteuid() == 0 else (after("sandbox/hardening.py", "harden", "prctl.set_dumpable(1)"),)


def build(seams: Seams, modules: dict[str, Path | str] | None = None, everywhere: str = "") -> tuple[str, ...]:
    """The command that starts it. `modules` are files to add, by their place in weave/; `everywhere` runs first in each
    process."""
    folder = Path(tempfile.mkdtemp(prefix="weave-build-"))
    package = folder / "src" / "weave"
    shutil.copytree(PACKAGE, package)  # with what is compiled of it, which holds for the modules that stay as they are
    for name, source in applied(seams).items():
        (package / name).write_text(source)
    for name, module in (modules or {}).items():
        (package / name).write_text(module if isinstance(module, str) else module.read_text())
    # Not above the source: the worker may read all of its environment.
    environment = folder / "environment"
    packages = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "everywhere.py").write_text(everywhere)
    # The libraries stay where they are. The build's worker may read them there, as the product's may.
    lines = [str(folder / "src"), *map(str, worker_files.packages(sys.path)), "import everywhere"]
    (packages / "build.pth").write_text("\n".join(lines) + "\n")
    # Without the second line Python would also find the distribution's libraries, which have other versions.
    settings = f"home = {Path(sys.base_prefix) / 'bin'}\ninclude-system-site-packages = false\n"
    (environment / "pyvenv.cfg").write_text(settings)
    (environment / "bin").mkdir()
    (environment / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    return (str(environment / "bin" / "python"), "-I", "-B", "-m", "weave.supervisor")


@functools.cache
def visible() -> tuple[str, ...]:
    """The command of a daemon whose descriptors and memory the user who runs the tests may see."""
    return build(DUMPABLE) if DUMPABLE else (str(COMMAND),)


def daemon_of(seams: Seams, config: str = MODEL, *, everywhere: str = "", **more: Any) -> Daemon:
    return Daemon(config, command=build(seams, everywhere=everywhere), **more).wait_until_serving()
