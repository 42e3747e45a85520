"""Record mode: what a new driver's worker asks of the kernel, noted and let through (docs/operations.md).

The worker only has fewer calls on its filter (worker_calls.recording) and less held back by Landlock. What lets a call
through is the supervisor's answer, which it gives only where main.py made a Recorder, for --record in user mode.
"""

from collections import Counter
from collections.abc import Iterator

from weave import log
from weave.config.child_configs import WorkerModel
from weave.sandbox import seccomp, worker_calls, worker_files
from weave.sandbox.seccomp import Refusal, Violation
from weave.supervisor.record_mode import opened_files
from weave.supervisor.record_mode.findings import Finding, Other, call_found, file_found

# A worker that was taken over could make as many as there are numbers; the rest are counted together.
_MOST_FINDINGS = 1000
_THE_REST = Other("(further ones)")
# Yama's ptrace_scope is 2 or 3 there.
_UNREADABLE = Other("(files: the kernel does not show their names)")


class Recorder:
    """All that the workers of one daemon were found to ask for."""

    def __init__(self) -> None:
        self._counts: Counter[Finding] = Counter()

    def count(self, finding: Finding, violation: Violation) -> None:
        """Log it, too, when it is the first of its kind."""
        if finding not in self._counts and len(self._counts) >= _MOST_FINDINGS:
            finding = _THE_REST
        if finding not in self._counts:
            addition = None if finding.listed else finding.addition()
            arguments = list(map(hex, violation.arguments))
            fields = finding.fields() | {"listed": finding.listed, "arguments": arguments, "add": addition}
            log.write("supervisor", "sandbox_recorded", **fields)
        self._counts[finding] += 1

    def summary(self) -> Iterator[str]:
        """A line for each finding with its count, first those that are not listed; then what there is to add."""
        for finding, count in sorted(self._counts.items(), key=lambda item: (item[0].listed, -item[1])):
            yield f"{'listed' if finding.listed else 'not listed':<12}{finding.text():<32}{count:>8}"
        yield from additions(self._counts)


def additions(findings: Counter[Finding]) -> Iterator[str]:
    """Nothing, or `To add:` and for each tuple a line that names it and the indented lines for its end."""
    found = {finding.addition() for finding in findings if not finding.listed} - {None}
    heading = None
    for addition in sorted(filter(None, found)):
        if heading is None:
            yield "To add:"
        if heading != (heading := f"{addition.file}: at the end of {addition.place}"):
            yield heading
        yield f"    {addition.line}"


class RecordedWorker:
    """Answers one worker's calls, from before its device's start on. Until `locked_down` only Landlock would be in
    force, which judges the opening of files; from then on the list of calls as well."""

    def __init__(self, recorder: Recorder, pid: int, model: WorkerModel) -> None:
        self.locked_down = False
        self._recorder = recorder
        self._pid = pid
        self._calls = worker_calls.calls(pid, gpu=True)
        self._rules = worker_files.rules(pid, model.path, model.layout).existing()

    def answer(self, listener: int, violation: Violation) -> None:
        """Have the call made, or refused where the list refuses it with an error; count what the lists lack."""
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
        """The file that the call would open, if there is one and the rules do not leave it to the worker."""
        if violation.call not in opened_files.CALLS:
            return
        try:
            opened = opened_files.opened(violation, self._pid)
            if opened is not None and not self._rules.leave(opened.path, writes=opened.writes):
                yield file_found(opened, self._pid)
        except PermissionError:
            yield _UNREADABLE
        except OSError:  # the thread, or the file, is gone
            return
