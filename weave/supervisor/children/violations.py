"""Forbidden system calls: each child sends its seccomp listener, on which the supervisor hears of them."""

from weave import log
from weave.protocol.channel import ChannelViolation, close_all
from weave.protocol.waiting import readable
from weave.sandbox import seccomp
from weave.supervisor.children.process import kill
from weave.supervisor.record_mode.recorder import RecordedWorker


def take_listener(descriptors: list[int]) -> int:
    """The seccomp listener, which must be the only descriptor of a message; the caller owns it. Raises
    ChannelViolation, with all `descriptors` closed."""
    if len(descriptors) != 1 or not seccomp.is_listener(descriptors[0]):
        close_all(descriptors)
        raise ChannelViolation("locked_down came without a seccomp listener")
    return descriptors[0]


async def watch_violations(
    process: str, listener: int, pidfd: int, recorded: RecordedWorker | None = None
) -> str | None:
    """Wait for a forbidden call in any thread, kill the process, log the call and return its name; None if the process
    exits first. In record mode each call is answered instead, and other tasks run between two answers."""
    try:
        return await _watch(process, listener, pidfd, recorded)
    except Exception as error:  # out of descriptors, for example: the process's calls would never be answered
        kill(pidfd)
        log.write("supervisor", "watch_failed", of=process, detail=f"{type(error).__name__}: {error}")
        raise


async def _watch(process: str, listener: int, pidfd: int, recorded: RecordedWorker | None) -> str | None:
    while True:
        await readable(listener)
        # Before receiving: on older kernels that blocks when the process has exited (seccomp_unotify(2), BUGS).
        if seccomp.has_ended(listener):
            return None
        violation = seccomp.receive_violation(listener)
        if violation is not None and recorded is not None:
            recorded.answer(listener, violation)
        elif violation is not None:
            kill(pidfd)
            arguments = [hex(argument) for argument in violation.arguments]
            log.write("supervisor", "sandbox_violation", of=process, call=violation.call, arguments=arguments)
            return violation.call
