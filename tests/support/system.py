"""The daemon in system mode, started by root, with the tests' own users."""

import os
import sys
from pathlib import Path
from typing import Any

from tests.support.daemon import DEMO_MODEL, Daemon
from tests.support.users import ALICE, BROKER, GROUP, WORKER
from weave.sandbox import worker_files

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = f"""
[system]
allowed_users = ["{ALICE}"]
allowed_groups = ["{GROUP}"]
socket_group = "{GROUP}"
broker_user = "{BROKER}"
worker_user = "{WORKER}"
"""
SIDE = "{ min = 64, max = 128 }"
MODEL = f"""
[models.shapes]
path = "{DEMO_MODEL}"
family = "sd1"
bounds = {{ width = {SIDE}, height = {SIDE} }}
defaults = {{ width = 128, height = 128, steps = 20, cfg_scale = 2.0, scheduler = "ddim" }}
"""


def reachable() -> tuple[str, ...]:
    """The prefix of a command if Python, its libraries or this project lie in a folder that only root can enter."""
    folders = {ROOT / "weave", ROOT / "models", Path(sys.prefix), Path(sys.base_prefix)}
    folders |= set(worker_files.packages(sys.path))
    if all(above.stat().st_mode & 0o001 for folder in folders for above in folder.parents):
        return ()  # so that it also runs where mounting is not allowed
    return ("unshare", "--mount", sys.executable, str(ROOT / "tests/support/readable.py"), *map(str, folders), "--")


def system_daemon(folder: Path, config: str = SYSTEM + MODEL, *, as_user: tuple[str, ...] = (), **more: Any) -> Daemon:
    """With its socket and config in `folder`, which others may enter, like /run and /etc."""
    os.chmod(folder, 0o755)
    path = folder / "weave-compute.toml"
    path.write_text(config)
    options = ("--system", "--config", str(path), "--socket", str(folder / "weave" / "weave.sock"))
    daemon = Daemon(prefix=(*reachable(), *as_user), folder=folder, options=options, **more)
    daemon.config = path
    return daemon
