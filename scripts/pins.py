"""Selects entries of requirements.lock."""

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path("requirements.lock")


def needed(requirements: Iterable[str], python: str, without: Iterable[str] = ()) -> set[str]:
    """The names of the `requirements` and of all their dependencies on that Python ("3.11"), according to what is
    installed here. Leaves out `without`, and what only those depend on."""
    marks = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    wanted = list(requirements)
    found: set[str] = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        if (
            name not in found
            and name not in without
            and (requirement.marker is None or requirement.marker.evaluate(marks))
        ):
            found.add(name)
            wanted += metadata.requires(name) or []
    return found


def of(names: set[str]) -> list[str]:
    """The entries of `names`, with hashes. torch and what only it needs have another lock file, so no entries here."""
    entries = re.findall(r"^\S+==.*(?:\n    .*)*", LOCK.read_text(), re.MULTILINE)
    return [entry for entry in entries if canonicalize_name(entry.split("==")[0]) in names]
