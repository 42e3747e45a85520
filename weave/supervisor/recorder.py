"""Record mode: what a new driver's worker asks of the kernel, noted and let through (docs/operations.md).

The worker only leaves ioctl off its list (worker_calls.recording). What lets a call through is the supervisor's answer,
which it gives only where main.py made a Recorder, for --record in user mode.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from weave import log
from weave.sandbox import worker_calls
from weave.sandbox.seccomp import Violation

# A worker that was taken over could make as many as there are numbers; the rest are counted together.
_MOST_FINDINGS = 1000


class Finding(NamedTuple):
    """What is counted together: a call by its name, an ioctl by its request. `listed`: the usual list allows it."""

    listed: bool
    call: str
    request: int | None = None


_THE_REST = Finding(listed=False, call="(further ones)")


class Recorder:
    """All that the workers of one daemon were found to ask for."""

    def __init__(self) -> None:
        self._counts: Counter[Finding] = Counter()

    def note(self, violation: Violation) -> None:
        """Count it; log it when it is the first of its kind."""
        finding = _finding(violation)
        if finding not in self._counts and len(self._counts) >= _MOST_FINDINGS:
            finding = _THE_REST
        if finding not in self._counts:
            fields = {"call": finding.call, "listed": finding.listed, "arguments": list(map(hex, violation.arguments))}
            if finding.request is not None:
                fields |= {"request": hex(finding.request), "type": _type(finding.request)}
            log.write("supervisor", "sandbox_recorded", **fields)
        self._counts[finding] += 1

    def summary(self) -> Iterator[str]:
        """A line for each finding with its count, first those that are not on the list."""
        for finding, count in sorted(self._counts.items(), key=lambda item: (item[0].listed, -item[1])):
            name = finding.call
            if finding.request is not None:
                name += f" {finding.request:#x} (type {_type(finding.request)})"
            yield f"{'listed' if finding.listed else 'not listed':<12}{name:<32}{count:>8}"


def _finding(violation: Violation) -> Finding:
    """What is on the list never comes here, but for ioctl."""
    if violation.call != "ioctl":
        return Finding(listed=False, call=violation.call)
    request = violation.arguments[1] & 0xFFFF_FFFF  # ioctl(2) takes an unsigned int
    return Finding(worker_calls.lists_ioctl(violation.arguments), "ioctl", request)


def _type(request: int) -> str:
    """The letter that a driver has for its requests (linux/ioctl.h), or its number: UVM's is 0."""
    letter = chr(request >> 8 & 0xFF)
    return letter if letter.isascii() and letter.isprintable() else hex(ord(letter))
