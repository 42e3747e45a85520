"""Writes requirements.lock, requirements-build.lock and requirements-torch.lock: every dependency with its hashes.

    python scripts/lock.py [--check]

--check contacts no index: it checks that the files have all of pyproject.toml's dependencies, each with a hash.
"""

import argparse
import os
import re
import sys
import tomllib
from collections import defaultdict
from itertools import product
from pathlib import Path

from install_torch import LOCK as TORCH
from install_torch import OF_TORCH, digest, report, requirement
from install_torch import hashes as hashes_in
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK, BUILD = Path("requirements.lock"), Path("requirements-build.lock")
HEADER = "# Made by `make lock`. torch has a file of its own: its builds differ from machine to machine.\n"
BUILD_HEADER = "# Made by `make lock`: what builds this project and the source distributions among its dependencies.\n"
TORCH_HEADER = (
    "# Made by `make lock`: torch and what only it needs, as PyPI has them (CUDA); torch for processors alone\n"
    "# (CPU), as torch's own index of such builds has it. Other builds are not in here.\n"
)
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
GLIBC_MINORS = range(17, 40)
# The index on torch's website. Without it the hashes of CPU builds stay as they are.
CPU_INDEX = os.environ.get("TORCH_CPU_INDEX")
BUILDERS = ("setuptools",)
PIP = [sys.executable, "-m", "pip"]
# Without this machine's folders and indexes, so that the hashes are those of the public files.
PUBLIC = {name: value for name, value in os.environ.items() if name not in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL")}
PUBLIC |= {"PIP_CONFIG_FILE": os.devnull}
Hashes = dict[str, set[str]]


def main() -> None:
    """Resolve pyproject.toml's dependencies here, then get the hashes for each supported platform."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true")
    wanted = dependencies()
    if options.parse_args().check:
        check(wanted)
        return
    # pyproject.toml's markers, for packages with builds for some platforms only.
    markers = {needed.name: str(needed.marker) for needed in wanted if needed.marker}
    found = resolved("--ignore-installed", *map(str, wanted))
    versions = {name: version for name, version, _ in found}
    hashes: Hashes = defaultdict(set)
    locked = [f"{name}=={version}" for name, version in versions.items() if not name.startswith(OF_TORCH)]
    from_source = {name for name, _, url in found if not url.endswith(".whl")}
    wheels = [pin for pin in locked if pin.split("==")[0] not in from_source]
    for options_of, environment in platforms():
        skipped = {needed.name for needed in wanted if needed.marker and not needed.marker.evaluate(environment)}
        hash_files(hashes, *options_of, *(pin for pin in wheels if pin.split("==")[0] not in skipped))
    hash_files(hashes, "--ignore-installed", "--no-deps", *locked)
    lock_torch(f"torch=={versions['torch'].split('+')[0]}")
    LOCK.write_text(HEADER + entries(locked, hashes, markers))
    builders = [pin for pin in locked if pin.split("==")[0] in BUILDERS]
    BUILD.write_text(BUILD_HEADER + entries(builders, hashes, {}))


def lock_torch(torch: str) -> None:
    """PyPI's builds, then those of CPU_INDEX. Known hashes are kept if the version of torch has not changed."""
    same = TORCH.exists() and requirement() == torch
    hashes: Hashes = defaultdict(set, hashes_in(TORCH) if same else {})
    found = [(name, version) for name, version, _ in resolved("--ignore-installed", torch, environment=PUBLIC)]
    pins = [f"{name}=={version}" for name, version in found if name.startswith(OF_TORCH)]
    for options, _ in platforms():
        hash_files(hashes, *options, *pins, environment=PUBLIC)
        if CPU_INDEX is not None:
            hash_files(hashes, *options, f"--index-url={CPU_INDEX}", torch, environment=PUBLIC)
    TORCH.write_text(TORCH_HEADER + entries(pins, hashes, {}))


def platforms() -> list[tuple[list[str], dict[str, str]]]:
    """pip's options for each platform's wheels, and the values of markers there."""
    found = []
    for python, machine in product(PYTHONS, MACHINES):
        names = [f"--platform=manylinux{year}_{machine}" for year in (1, 2010, 2014)]
        names += [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS]
        options = ["--only-binary=:all:", "--no-deps", "--target=/nonexistent", f"--python-version={python}", *names]
        found.append((options, {"python_version": python, "platform_machine": machine}))
    return found


def entries(pins: list[str], hashes: Hashes, markers: dict[str, str]) -> str:
    """Lines of a requirements file."""
    lines = []
    for pin in sorted(pins):
        name = pin.split("==")[0]
        where = f" ; {markers[name]}" if name in markers else ""
        digests = [f"--hash=sha256:{digest}" for digest in sorted(hashes[canonicalize_name(name)])]
        lines.append(" \\\n    ".join([pin + where, *digests]))
    return "\n".join(lines) + "\n"


def hash_files(hashes: Hashes, *arguments: str, environment: dict[str, str] | None = None) -> None:
    """Add the digest of each file that pip would install."""
    for item in report(PIP, list(arguments), environment):
        name = canonicalize_name(item["metadata"]["name"])
        found = digest(item)
        assert found is not None, f"the index has no hash of {name}"
        hashes[name].add(found)


def resolved(*arguments: str, environment: dict[str, str] | None = None) -> list[tuple[str, str, str]]:
    """Name, version and URL of all that pip would install."""
    return [
        (item["metadata"]["name"].lower(), item["metadata"]["version"], item["download_info"]["url"])
        for item in report(PIP, list(arguments), environment)
    ]


def dependencies() -> list[Requirement]:
    """Of the program, for its development, and for its build."""
    text = tomllib.loads(Path("pyproject.toml").read_text())
    project = text["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["dev"], *text["build-system"]["requires"]]
    return list(map(Requirement, named))


def check(wanted: list[Requirement]) -> None:
    """Raises SystemExit if a lock file lacks a dependency or a hash."""
    wrong = []
    pinned: dict[str, str] = {}
    for file in (LOCK, BUILD, TORCH):
        for name, rest in re.findall(r"^(\S+)==(.*(?:\n    .*)*)", file.read_text(), re.MULTILINE):
            pinned[canonicalize_name(name)] = re.split(r"[\s;]", rest)[0]
            if "--hash=sha256:" not in rest:
                wrong.append(f"{file}: {name} has no hash")
    for needed in wanted:
        version = pinned.get(canonicalize_name(needed.name))
        if version is None or not needed.specifier.contains(version):
            wrong.append(f"{needed} is locked as {version}: make lock")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
