"""The README's examples, run as they are written there."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.support.daemon import COMMAND, DEMO_MODEL, Daemon
from weave.sandbox import broker_calls, worker_calls
from weave.sandbox.seccomp import Call

README = (Path(__file__).parents[2] / "README.md").read_text()


def example(heading: str) -> str:
    """The first indented block below a heading."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    block = re.search(r"(?m)^(?:    .*\n|\n)*    .*$", section[section.index("\n    ") :])
    assert block is not None
    return textwrap.dedent(block.group())


def test_the_example_for_python_makes_an_image(shared_daemon: Daemon, tmp_path: Path) -> None:
    code = example("Call it from your program")
    environment = os.environ | {"XDG_RUNTIME_DIR": str(shared_daemon.folder)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=200)
    assert (tmp_path / "circle.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_example_adds_a_model_to_the_config(tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "models/sdxl")
    # No config of the machine's, and no daemon's socket.
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / ".config"), "XDG_RUNTIME_DIR": str(tmp_path)}
    environment = os.environ | home | {"PATH": f"{COMMAND.parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-euc", example("Use your own model")], env=environment, check=True, timeout=60)
    checked = subprocess.run([COMMAND, "--check-config"], env=environment, check=True, capture_output=True, text=True)
    assert checked.stdout == "good: 1 models\n"


def test_the_counts_of_system_calls_are_those_of_the_lists() -> None:
    lists = (broker_calls.CALLS, worker_calls.calls(0, gpu=False))
    counts = [str(len({call.name for call in calls if isinstance(call, Call)})) for calls in lists]
    assert re.findall(r"seccomp \((\d+) calls\)", README) == counts
