"""Records the worker's system calls that are not on its lists, and allows them (docs/operations.md).

A worker in record mode has a filter that reports more calls (worker_calls.recording) and a weaker Landlock layer. But a
reported call is made only if the supervisor answers so, and it does only if main.py has created a Recorder, for
--record in user mode.
"""

from collections import Counter
from collections.abc import Iterator

from weave import log
from weave.config.child_configs import WorkerModel
from weave.sandbox import seccomp, worker_calls, worker_files
from weave.sandbox.nvidia import card_of
from weave.sandbox.seccomp import Refusal, Violation
from weave.supervisor.record_mode import opened_files
from weave.supervisor.record_mode.findings import Finding, Uncategorized, call_found, file_found

# A compromised worker could cause any number of findings. The rest are counted together.
_MOST_FINDINGS = 1000
_THE_REST = Uncategorized("(further ones)")
# Yama's ptrace_scope is 2 or 3.
_UNREADABLE = Uncategorized("(files: the kernel does not show their names)")


class Recorder:
    """The findings of all workers of one daemon."""

    def __init__(self) -> None:
        self._counts: Counter[Finding] = Counter()

    def count(self, finding: Finding, violation: Violation) -> None:
        """Also logs the first of each kind."""
        if finding not in self._counts and len(self._counts) >= _MOST_FINDINGS:
            finding = _THE_REST
        if finding not in self._counts:
            addition = None if finding.listed else finding.addition()
            arguments = list(map(hex, violation.arguments))
            fields = finding.fields() | {"listed": finding.listed, "arguments": arguments, "add": addition}
            log.write("supervisor", "sandbox_recorded", **fields)
        self._counts[finding] += 1

    def summary(self) -> Iterator[str]:
        """A line with a count for each finding, unlisted ones first; then the lines to add to the lists."""
        for finding, count in sorted(self._counts.items(), key=lambda item: (item[0].listed, -item[1])):
            yield f"{'listed' if finding.listed else 'not listed':<12}{finding.text():<32}{count:>8}"
        yield from additions(self._counts)


def additions(findings: Counter[Finding]) -> Iterator[str]:
    """`To add:`, and for each tuple a line that names it and the indented lines for its end. Nothing if all is
    listed."""
    found = {finding.addition() for finding in findings if not finding.listed} - {None}
    heading = None
    for addition in sorted(filter(None, found)):
        if heading is None:
            yield "To add:"
        if heading != (heading := f"{addition.file}: at the end of {addition.place}"):
            yield heading
        yield f"    {addition.line}"


class RecordedWorker:
    """Answers one worker's calls. A worker that is not recorded has only Landlock in force until it is locked down, so
    until `locked_down` only the files that it opens are findings; then also the calls that are not on the list."""

    def __init__(self, recorder: Recorder, pid: int, model: WorkerModel, device: str) -> None:
        self.locked_down = False
        self._recorder = recorder
        self._pid = pid
        self._calls = worker_calls.listed(pid)
        self._rules = worker_files.rules(pid, *model.paths(), card=card_of(device)).existing()

    def answer(self, listener: int, violation: Violation) -> None:
        """Have the kernel make the call, or refuse it if the list has a Refusal for it. Count what the lists lack."""
        line = seccomp.find(self._calls, violation.call, violation.arguments)
        if self.locked_down and isinstance(line, Refusal):
            seccomp.refuse(listener, violation, line.error)
            return
        findings: list[Finding] = [*self._file(violation)]
        if self.locked_down and (line is None or violation.call == "ioctl"):
            findings.append(call_found(violation, self._calls, listed=line is not None))
        if seccomp.still_waits(listener, violation):
            for finding in findings:
                self._recorder.count(finding, violation)
        seccomp.let_through(listener, violation)

    def _file(self, violation: Violation) -> Iterator[Finding]:
        """The file that the call would open, if the worker's rules do not allow it."""
        if violation.call not in opened_files.CALLS:
            return
        try:
            opened = opened_files.opened(violation, self._pid)
            if opened is not None and not self._rules.allow(opened.path, writes=opened.writes):
                yield file_found(opened, self._pid)
        except PermissionError:
            yield _UNREADABLE
        except OSError:  # the thread has exited, or the file was removed
            return
