"""Runs the tests for a GPU on this machine: `gpu-kit/run [--report-folder FOLDER] [--work FOLDER] [for pytest...]`.

Finds torch, creates an environment around it in a temporary folder, runs tests/gpu there, and removes the folder. Apart
from that it writes only the report. It downloads nothing. The exit status is pytest's, or 2 if the tests cannot start.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_kit import environment, machine

KIT = Path(__file__).resolve().parents[1]
# For everything. With the start and the cleanup that is ten minutes.
SECONDS = 560
LONGEST_WORK = 40
STOPPING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
# The order of imports decides which missing library is named. Prints the GPU's name, if there is one.
_CHECK = """
import numpy, PIL, pytest, msgspec, prctl, safetensors, torch, transformers, diffusers
from weave.sandbox import seccomp
import weave.supervisor.main
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")
"""


def main() -> None:
    """Exit with the tests' status; 2 if they cannot start."""
    try:
        sys.exit(run())
    except machine.CannotRun as error:
        print(f"gpu-kit: {error}", file=sys.stderr)
        sys.exit(2)


def run() -> int:
    """The exit status of the tests. Raises CannotRun."""
    started = time.monotonic()
    parser = argparse.ArgumentParser("gpu-kit/run", description=__doc__, allow_abbrev=False)
    parser.add_argument("--report-folder", type=Path, default=Path("gpu-report"))
    parser.add_argument("--work", type=Path, help="for temporary files; must not exist yet")
    options, for_pytest = parser.parse_known_args()
    report = options.report_folder.resolve()
    os.umask(0o022)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(2))
    print("gpu-kit:", (KIT / "made-from").read_text().strip(), flush=True)
    torch = machine.find()
    print(f"gpu-kit: {torch}", flush=True)
    with work_folder(options.work) as folder:
        python = environment.make(KIT, folder, torch)
        variables = environment.variables(folder, torch)
        if not gpu(python, variables) and "--without-gpu" not in for_pytest:
            print("gpu-kit: no GPU on this machine: a rehearsal, with --without-gpu", flush=True)
            for_pytest.append("--without-gpu")
        print(f"gpu-kit: ready after {time.monotonic() - started:.0f} s", flush=True)
        left = f"--seconds={max(SECONDS - (time.monotonic() - started), 60):.0f}"
        status = run_tests(python, variables, folder / "source", [left, f"--report-folder={report}", *for_pytest])
    print(f"gpu-kit: {time.monotonic() - started:.0f} s in total; the report is {report}/report.txt and report.json")
    return status


@contextmanager
def work_folder(chosen: Path | None) -> Iterator[Path]:
    """A folder that every user can enter. It is removed afterwards."""
    # A signal's handler raises: after a folder exists, and before the `try` that removes it, it would leave one behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        folder = _create(chosen)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            folder.chmod(0o755)
            if len(str(folder)) > LONGEST_WORK:
                raise machine.CannotRun(f"{folder} is too long a path for the tests' sockets in it (unix(7))")
            (folder / "t").mkdir()
            (folder / "t").chmod(0o1777)
            if os.statvfs(folder).f_flag & os.ST_NOEXEC:
                raise machine.CannotRun(f"{folder} is mounted noexec; choose another with --work")
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _create(chosen: Path | None) -> Path:
    if chosen is None:
        return Path(tempfile.mkdtemp(prefix="gpu-"))
    folder = chosen.resolve()
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise machine.CannotRun(f"{folder} exists, and the kit would remove it; choose another with --work") from None
    return folder


def gpu(python: Path, variables: dict[str, str]) -> bool:
    """Whether torch finds a GPU, or the driver has created a device for one. Raises CannotRun if a library is
    missing."""
    command = [str(python), "-I", "-B", "-c", _CHECK]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise machine.CannotRun(f"this machine lacks a library, or has one that is too old:\n{done.stderr}")
    name = done.stdout.strip()
    devices = sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))
    print(f"gpu-kit: GPU: {name or 'torch finds none'}; devices: {' '.join(devices) or 'none'}", flush=True)
    return bool(name or devices)


def run_tests(python: Path, variables: dict[str, str], source: Path, arguments: list[str]) -> int:
    """pytest's exit status. Ctrl-C reaches pytest too, which then reports what it has."""
    # No plugins of the machine, only the kit's.
    command = [str(python), "-m", "pytest", "-vv", "-p", "timeout", "tests/gpu"]
    command += [f"--basetemp={source.parent / 'p'}", *arguments]
    variables = variables | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with subprocess.Popen(command, env=variables, cwd=source) as tests:
        while True:
            try:
                return tests.wait()
            except KeyboardInterrupt:
                continue
            except SystemExit:
                tests.terminate()
                raise
