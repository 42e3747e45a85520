"""Puts the lines that `weave-compute --record` prints into a build."""

import re

from tests.support.seams import Seams, constant

_HEADING = re.compile(r"weave/(?P<file>\S+): at the end of (?P<place>\w+)")


def to_add(output: str) -> dict[tuple[str, str], list[str]]:
    """The lines for the end of each tuple, by its file within weave/ and its name."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in output.partition("To add:\n")[2].splitlines():
        if heading := _HEADING.fullmatch(line):
            lines = found[heading["file"], heading["place"]] = []
        else:
            lines.append(line)
    return found


def additions(output: str) -> Seams:
    """For tests.support.builds.build()."""
    return tuple(
        constant(file, place, "\n".join([f"(*{place},", *lines, ")"]))
        for (file, place), lines in to_add(output).items()
    )
