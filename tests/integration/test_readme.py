"""The README's examples, run as they are written there."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.support.daemon import COMMAND, Daemon
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


def test_the_example_config_is_good(tmp_path: Path) -> None:
    config = tmp_path / "weave-compute.toml"
    config.write_text(example("Use your own model"))
    command = [COMMAND, "--config", config, "--check-config"]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout == "good: 1 models\n"


def test_the_counts_of_system_calls_are_those_of_the_lists() -> None:
    lists = (broker_calls.CALLS, worker_calls.calls(0, gpu=False))
    counts = [str(len({call.name for call in calls if isinstance(call, Call)})) for calls in lists]
    assert re.findall(r"seccomp \((\d+) calls\)", README) == counts
