"""weavectl: the command."""

import argparse
import signal
import sys
from pathlib import Path

from weave import __version__
from weave.client import NotRunning, ProtocolError, WeaveError
from weave.weavectl import commands, doctor
from weave.weavectl.output import Output

EXIT_REFUSED = 1
EXIT_NOT_RUNNING = 3
EXIT_INTERRUPTED = 130
_EXIT_STATUS = """exit status:
  0 done; 1 the daemon refused or failed the request; 2 wrong usage; 3 no daemon answers;
  4 doctor or check-config found a problem; 130 interrupted (the job is cancelled)"""


def parser() -> argparse.ArgumentParser:
    """The options; weavectl(1) says more."""
    options = argparse.ArgumentParser(
        prog="weavectl",
        description="Talks to weave-compute.",
        epilog=_EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--socket", type=Path, metavar="PATH", help="the daemon's socket")
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    options.add_argument("--version", action="version", version=f"weavectl {__version__}")
    verbs = options.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    verbs.add_parser("status", help="what the daemon is doing").set_defaults(run=commands.status)
    verbs.add_parser("models", help="the models that can be asked for").set_defaults(run=commands.models)
    load = verbs.add_parser("load", help="load a model, so that the next picture starts at once")
    load.add_argument("model")
    load.set_defaults(run=commands.load)
    verbs.add_parser("unload", help="give all of the worker's memory back").set_defaults(run=commands.unload)
    _add_generate(verbs.add_parser("generate", help="draw pictures"))
    cancel = verbs.add_parser("cancel", help="cancel your jobs")
    cancel.add_argument("job", type=int, nargs="*", help="as status lists them")
    cancel.add_argument("--all", action="store_true", help="every job of yours")
    cancel.set_defaults(run=commands.cancel)
    for name, run in (("doctor", doctor.doctor), ("check-config", doctor.check_config)):
        verb = verbs.add_parser(name, help=(run.__doc__ or "").splitlines()[0].rstrip(".").lower())
        verb.add_argument("--config", type=Path, metavar="FILE")
        verb.set_defaults(run=run)
    return options


def _add_generate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("prompt")
    verb.add_argument("-o", "--output", type=Path, default=Path("weave.png"), metavar="FILE")
    verb.add_argument("-f", "--force", action="store_true", help="overwrite FILE")
    verb.add_argument("--model", metavar="ID")
    verb.add_argument("--negative-prompt", default="", metavar="PROMPT")
    for name in ("width", "height", "steps", "seed"):
        verb.add_argument(f"--{name}", type=int, metavar="N")
    verb.add_argument("--cfg-scale", type=float, metavar="X")
    verb.add_argument("--scheduler", metavar="NAME")
    verb.add_argument("--images", type=int, default=1, metavar="N")
    verb.add_argument("--format", choices=("png", "raw"), default="png")
    verb.add_argument(
        "--preview", type=int, default=0, metavar="N", help="write an unfinished picture to FILE every N steps"
    )
    verb.set_defaults(run=commands.generate)


def main() -> None:
    """Exit statuses are in the epilog."""
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    output = Output(json=options.json)
    try:
        status = options.run(options, output)
    except WeaveError as error:
        output.error(error.error)
        status = EXIT_REFUSED
    except (NotRunning, ProtocolError) as error:
        print(f"weavectl: {error}; is weave-compute running? weavectl doctor tells more", file=sys.stderr)
        status = EXIT_NOT_RUNNING
    except KeyboardInterrupt:
        print("weavectl: cancelled", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except (FileExistsError, PermissionError, FileNotFoundError) as error:
        print(f"weavectl: {error}", file=sys.stderr)
        status = EXIT_REFUSED
    raise SystemExit(status)


def _interrupt(*_: object) -> None:
    # Once: `timeout`, for one, signals a process and its whole group.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
