"""What `weave-compute --record` says is to be added, put into a build."""

import re
from pathlib import Path

import weave
from tests.support.builds import Changes

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


def additions(output: str) -> Changes:
    """For tests.support.builds.build()."""
    changes: Changes = {}
    for (file, place), lines in to_add(output).items():
        source = (Path(weave.__file__).parent / file).read_text()
        whole = re.search(rf"^{place}\b[^\n]*\(\n.*?^\)\n", source, re.MULTILINE | re.DOTALL)
        assert whole is not None, f"{file} has no tuple {place}"
        last = "".join(whole[0].splitlines(keepends=True)[-2:])
        changes.setdefault(file, []).append((last, last.removesuffix(")\n") + "\n".join(lines) + "\n)\n"))
    return changes
