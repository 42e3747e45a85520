"""weavectl: the command, from its start to its exit status."""

import argparse
import os
import signal
import sys
from typing import NoReturn

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # as a shell tells of what SIGPIPE ended
_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2


def parser() -> argparse.ArgumentParser:
    """The options; weavectl(1) says more."""
    from weave.weavectl.options import parser as made

    return made()


def main() -> None:
    """Exit statuses are in the epilog of --help."""
    # The imports take a while: until there is a job to cancel, an interrupt has nothing to tell.
    _on_interrupt(lambda *_: os._exit(EXIT_INTERRUPTED))
    _open_standard_streams()
    try:
        status = _run()
    except SystemExit as ended:  # argparse's
        status = ended.code if isinstance(ended.code, int) else EXIT_USAGE
    except BrokenPipeError:
        status = EXIT_PIPE
    _on_interrupt(signal.SIG_IGN)
    raise SystemExit(_flush(status))


def _run() -> int:
    from weave.client import InvalidRequest, NotRunning, ProtocolError, WeaveError
    from weave.weavectl.output import Output, UsageError

    options = parser().parse_args()
    _on_interrupt(_interrupt)
    output = Output(json=options.json)
    try:
        return int(options.run(options, output))
    except WeaveError as error:
        output.error(error.error)
        return EXIT_REFUSED
    except (UsageError, InvalidRequest) as error:
        output.problem(str(error))
        return EXIT_USAGE
    except (NotRunning, ProtocolError) as error:
        output.problem(f"{error}; is weave-compute running? weavectl doctor tells more")
        return EXIT_NOT_RUNNING
    except KeyboardInterrupt:
        output.problem("cancelled")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        output.problem(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
        return EXIT_REFUSED


def _on_interrupt(handler: object) -> None:
    """SIGINT is left alone where whoever started us ignores it, as a shell does for what runs in its background."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]
    signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]


def _interrupt(*_: object) -> NoReturn:
    # Once: `timeout`, for one, signals a process and its whole group.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _open_standard_streams() -> None:
    """Where we are started without them, the socket or a picture would take their places. What cannot be written
    to fails, so that a picture for a closed standard output is not lost without a word."""
    while (descriptor := os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # of a terminal that has not every character


def _flush(status: int) -> int:
    """What Python does at its end, too, but with a traceback where it fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STANDARD_OUTPUT)
        if isinstance(error, BrokenPipeError):
            return EXIT_PIPE
        if status == 0:  # else it is told already
            from weave.weavectl.output import Output

            Output(json=False).problem(f"standard output: {error.strerror}")
        return status or EXIT_REFUSED
    return status
