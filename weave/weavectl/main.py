"""The weavectl command: signals, standard streams and exit status."""

import argparse
import os
import signal
import sys
from typing import NoReturn

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # as shells report a process that SIGPIPE killed
_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2


def parser() -> argparse.ArgumentParser:
    """The options; weavectl(1) says more."""
    from weave.weavectl.options import parser as made

    return made()


def main() -> None:
    """Exit statuses are listed at the end of --help."""
    # The imports take a while, and until a job can be cancelled an interrupt just ends the process.
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
        output.problem(f"{error}; is weave-compute running? weavectl doctor finds out")
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
    """Leaves SIGINT alone if it was ignored at the start, as shells do for background processes."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]
    signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]


def _interrupt(*_: object) -> NoReturn:
    # Once: timeout(1), for example, signals both a process and its group.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _open_standard_streams() -> None:
    """If they are closed, the socket or an image file would get their descriptor numbers. They are opened read-only, so
    that writing an image to a closed standard output fails, and the image is not lost silently."""
    while (descriptor := os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # terminals may lack characters


def _flush(status: int) -> int:
    """Python also does this when it exits, but prints a traceback on failure."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Discard what is left in the buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STANDARD_OUTPUT)
        if isinstance(error, BrokenPipeError):
            return EXIT_PIPE
        if status == 0:  # else an error is already printed
            from weave.weavectl.output import Output

            Output(json=False).problem(f"standard output: {error.strerror}")
        return status or EXIT_REFUSED
    return status
