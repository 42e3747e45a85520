"""Installs the build of torch that pip selects here, if requirements-torch.lock has its hash.

    python scripts/install_torch.py [--python PYTHON] [--lock FILE]

UNLISTED_TORCH=1 allows a build without a hash in that file (ROCm, another CUDA), pinned by version only.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

LOCK = Path("requirements-torch.lock")
# Packages that only torch's builds need, each in the version that torch requires.
OF_TORCH = ("torch", "nvidia-", "cuda-", "triton")


def main() -> None:
    """Does nothing if this version of torch is installed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--python", default=sys.executable)
    options.add_argument("--lock", type=Path, default=LOCK)
    chosen = options.parse_args()
    pip = [sys.executable, "-m", "pip", "--python", chosen.python]
    if pins := of_torch(pip, chosen.lock):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(pins) + "\n")
            file.flush()
            hashed = ["--require-hashes"] if all("--hash" in pin for pin in pins) else []
            subprocess.run([*pip, "install", "--quiet", "--no-deps", *hashed, "-r", file.name], check=True)


def of_torch(pip: list[str], lock: Path = LOCK, options: Iterable[str] = ()) -> list[str]:
    """What pip selects, as lines of a requirements file. Raises SystemExit if `lock` lacks it, unless
    UNLISTED_TORCH=1."""
    listed, lines, unlisted = hashes(lock), [], []
    for item in report(pip, [*options, requirement(lock)]):
        name, version = canonicalize_name(item["metadata"]["name"]), item["metadata"]["version"]
        if not name.startswith(OF_TORCH):
            continue  # requirements.lock has it
        found = digest(item)
        if found not in listed.get(name, set()):
            unlisted.append(f"{name} {version} from {item['download_info']['url']}")
        lines.append(f"{name}=={version}" + (f" --hash=sha256:{found}" if found else ""))
    if unlisted and os.environ.get("UNLISTED_TORCH") != "1":
        raise SystemExit(
            f"{lock} has no hash of this build of torch:\n  " + "\n  ".join(unlisted) + "\n"
            "It has those of PyPI (CUDA) and of torch's index of CPU builds. "
            "If you trust the source of this one: UNLISTED_TORCH=1 make ..."
        )
    return lines


def report(pip: list[str], arguments: list[str], environment: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """All that pip would install. Raises subprocess.CalledProcessError."""
    command = [*pip, "install", "--dry-run", "--quiet", "--report", "-", *arguments]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout
    found: list[dict[str, Any]] = json.loads(said)["install"]
    return found


def digest(item: dict[str, Any]) -> str | None:
    """SHA-256 of the file, in hex; None if pip reports none. pip 23.0 (Debian 12) reports a local file's under `hash`
    only."""
    archive = item["download_info"].get("archive_info", {})
    algorithm, _, value = archive.get("hash", "").partition("=")
    found: str | None = archive.get("hashes", {}).get("sha256", value if algorithm == "sha256" else None)
    return found


def requirement(lock: Path = LOCK) -> str:
    """`torch==VERSION`."""
    (found,) = re.findall(r"^torch==[^\s;]+", lock.read_text(), re.MULTILINE)
    return str(found)


def hashes(lock: Path) -> dict[str, set[str]]:
    """The SHA-256 hashes in `lock`, by package name."""
    entries = re.findall(r"^(\S+)==(.*(?:\n    .*)*)", lock.read_text(), re.MULTILINE)
    return {canonicalize_name(name): set(re.findall(r"sha256:(\w{64})", rest)) for name, rest in entries}


if __name__ == "__main__":
    main()
