"""Parts of requirements.lock."""

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path("requirements.lock")


def needed(requirements: Iterable[str], python: str, without: Iterable[str] = ()) -> set[str]:
    """The names of what they need on that Python ("3.11"), and of what that needs, as installed here. What is `without`
    is left out together with what it alone needs."""
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
    """Their entries, with hashes; none for what has a lock file of its own, as torch has."""
    entries = re.findall(r"^\S+==.*(?:\n    .*)*", LOCK.read_text(), re.MULTILINE)
    return [entry for entry in entries if canonicalize_name(entry.split("==")[0]) in names]
