"""Writes requirements.lock: every dependency but torch, with the hashes of its files as the index tells them."""

import json
import subprocess
import sys
import tomllib
from collections import defaultdict
from itertools import product
from pathlib import Path

from packaging.requirements import Requirement

HEADER = "# Made by `make lock`. torch has a file of its own: its builds differ from machine to machine.\n"
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
GLIBC_MINORS = (17, 24, 26, 27, 28, 31, 34, 35)
# What only torch's own builds need, each in the version that this torch names.
OF_TORCH = ("torch", "nvidia-", "cuda-", "triton")


def main() -> None:
    """Resolve pyproject.toml's dependencies here, then ask for the files of each platform that is supported."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    # Of what has builds for some platforms only: the marker that pyproject.toml gives it.
    markers = {needed.name: needed.marker for needed in map(Requirement, wanted) if needed.marker}
    found = report("--ignore-installed", *wanted)
    versions = {name: version for name, version, _ in found}
    hashes: dict[str, set[str]] = defaultdict(set)
    locked = [f"{name}=={version}" for name, version in versions.items() if not name.startswith(OF_TORCH)]
    from_source = {name for name, _, url in found if not url.endswith(".whl")}
    wheels = [pin for pin in locked if pin.split("==")[0] not in from_source]
    for python, machine in product(PYTHONS, MACHINES):
        platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS]
        platforms += [f"--platform=manylinux{year}_{machine}" for year in (1, 2010, 2014)]
        options = ["--only-binary=:all:", "--no-deps", "--target=/nonexistent", f"--python-version={python}"]
        platform = {"python_version": python, "platform_machine": machine}
        skipped = {name for name, marker in markers.items() if not marker.evaluate(platform)}
        hash_files(hashes, *options, *platforms, *(pin for pin in wheels if pin.split("==")[0] not in skipped))
    hash_files(hashes, "--ignore-installed", "--no-deps", *locked)
    lines = []
    for pin in sorted(locked):
        name = pin.split("==")[0]
        where = f" ; {markers[name]}" if name in markers else ""
        lines.append(" \\\n    ".join([pin + where, *sorted(hashes[name])]))
    Path("requirements.lock").write_text(HEADER + "\n".join(lines) + "\n")
    Path("requirements-torch.txt").write_text(f"torch=={versions['torch'].split('+')[0]}\n")


def hash_files(hashes: dict[str, set[str]], *arguments: str) -> None:
    """Add the digest of each file that pip would install."""
    for item in pip_report(*arguments):
        name = item["metadata"]["name"].lower()
        hashes[name].add("--hash=sha256:" + item["download_info"]["archive_info"]["hashes"]["sha256"])


def report(*arguments: str) -> list[tuple[str, str, str]]:
    """Name, version and address of all that pip would install."""
    return [
        (item["metadata"]["name"].lower(), item["metadata"]["version"], item["download_info"]["url"])
        for item in pip_report(*arguments)
    ]


def pip_report(*arguments: str) -> list[dict]:  # type: ignore[type-arg]
    """Raises subprocess.CalledProcessError."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["install"]


if __name__ == "__main__":
    main()
