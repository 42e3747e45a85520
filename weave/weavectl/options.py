"""weavectl's options. scripts/completions.py generates the completions in conf/completions from them."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from weave import __version__
from weave.client import Control
from weave.protocol.declaration import Parameter
from weave.protocol.inputs import InputImage, RequestedControl
from weave.protocol.loras import RequestedLora
from weave.protocol.parameters import PARAMETERS, Enlarge, RequestedParameters, choices_of, summary, type_of
from weave.protocol.text import is_model_id, visible
from weave.weavectl import add as add_model
from weave.weavectl import commands, doctor, generate, plan, repeat
from weave.weavectl.generate import InputFile

_EXIT_STATUS = """exit status:
  0 done; 1 the daemon refused or failed the request, or a file could not be written; 2 wrong usage;
  3 no daemon answers; 4 add, doctor or check-config found a problem; 130 interrupted (the job is cancelled);
  141 standard output was closed"""
# Long enough for a service that systemd starts on demand.
_ANSWER_SECONDS = 20.0
_WATCH_SECONDS = 1.0


class _Parser(argparse.ArgumentParser):
    """Escapes arguments in its messages: they may come from a file name or from a script's input."""

    def error(self, message: str) -> NoReturn:
        super().error(visible(message))


class _Collect(argparse.Action):
    """Each use of the option adds a value to a tuple, as messages have it."""

    def __call__(self, parser: object, namespace: argparse.Namespace, value: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), value))


def parser() -> argparse.ArgumentParser:
    """The parser; weavectl(1) documents the options."""
    options = _Parser(
        prog="weavectl",
        description="Client and diagnostics for weave-compute.",
        epilog=_EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_common(options)
    options.set_defaults(socket=None, json=False, timeout=_ANSWER_SECONDS)
    options.add_argument("--version", action="version", version=f"weavectl {__version__}")
    common = _Parser(add_help=False)
    _add_common(common)
    verbs = options.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, parents=[common])

    status = add("status", "show the daemon's state")
    status.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=_WATCH_SECONDS,
        metavar="SECONDS",
        help=f"show it again every so many seconds (default: {_WATCH_SECONDS:g}), until interrupted",
    )
    status.set_defaults(run=commands.status)
    add("models", "list the models on offer").set_defaults(run=commands.models)
    load = add("load", "load a model, so that the next image starts without a wait")
    load.add_argument("model", help="its ID")
    load.set_defaults(run=commands.load)
    add("unload", "end the worker, which frees all of its memory").set_defaults(run=commands.unload)
    _add_generate(add("generate", "generate images"))
    _add_repeat(add("repeat", "generate an image again from its PNG"))
    cancel = add("cancel", "cancel your jobs")
    cancel.add_argument("job", type=int, nargs="*", help="the job's number in status")
    cancel.add_argument("--all", action="store_true", help="all of your jobs")
    cancel.set_defaults(run=commands.cancel)
    _add_add(add("add", "add a model, embedding or ControlNet to the config"))
    _add_plan(add("plan", "show how much device memory a model needs, and where it fits"))
    for name, run in (("doctor", doctor.doctor), ("check-config", doctor.check_config)):
        verb = add(name, (run.__doc__ or "").splitlines()[0].rstrip(".").lower())
        _add_config(verb)
        verb.set_defaults(run=run)
    return options


def _add_common(options: argparse.ArgumentParser) -> None:
    """Options that may stand before or after the command. Those after it must not reset those before it to their
    defaults."""
    options.add_argument(
        "-s", "--socket", type=_path, default=argparse.SUPPRESS, metavar="PATH", help="the daemon's socket"
    )
    options.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object a line")
    options.add_argument(
        "--timeout",
        type=_seconds,
        default=argparse.SUPPRESS,
        metavar="SECONDS",
        help=f"how long to wait for the daemon's first answer (default: {_ANSWER_SECONDS:g})",
    )


def _add_add(verb: argparse.ArgumentParser) -> None:
    text = (
        "a model's or ControlNet's folder, also in the Hub's cache, or its .safetensors or (a model's) .gguf file, "
        "or an embedding's file"
    )
    verb.add_argument("path", type=_path, nargs="?", metavar="PATH", help=text)
    verb.add_argument(
        "--part",
        type=_part,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="the file or folder of one component, such as vae, in place of the model's own; may be repeated",
    )
    verb.add_argument(
        "--layout",
        type=_path,
        metavar="FOLDER",
        help="for a file: a folder with other configs than the published model's",
    )
    verb.add_argument(
        "--id", type=_model_id, metavar="ID", help="its ID (default: made from the folder's or file's name)"
    )
    verb.add_argument("--title", metavar="TEXT", help="its title (default: the folder's or file's name)")
    verb.add_argument("-n", "--dry-run", action="store_true", help="write nothing")
    verb.add_argument("--known", action="store_true", help="list models that many people use, and how to get them")
    _add_config(verb)
    verb.set_defaults(run=add_model.add)


def _add_plan(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="its ID in the config, or its folder or .safetensors file")
    verb.add_argument("size", type=_size, nargs="?", metavar="WIDTHxHEIGHT", help="(default: the model's)")
    _add_config(verb)
    verb.set_defaults(run=plan.plan)


def _size(text: str) -> tuple[int, int]:
    width, separator, height = text.partition("x")
    if not (separator and all(side.isascii() and side.isdigit() and len(side) <= 6 for side in (width, height))):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not WIDTHxHEIGHT")
    return int(width), int(height)


def _part(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, _path(path)


def _add_config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", type=_path, metavar="FILE", help="the config file, instead of the default one")


def _add_generate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("prompt", help=PARAMETERS["prompt"].help)
    _add_output(verb, "where to put the image, and its previews before it; - is standard output")
    defaults = RequestedParameters(prompt="")
    for name, parameter in PARAMETERS.items():
        if parameter.option:
            _add_parameter(verb, name, parameter, default=getattr(defaults, name))
    verb.set_defaults(run=generate.generate)


def _add_output(verb: argparse.ArgumentParser, text: str) -> None:
    verb.add_argument("-o", "--output", default="weave.png", metavar="FILE", help=text)
    verb.add_argument("-f", "--force", action="store_true", help="overwrite FILE")


def _add_repeat(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("file", metavar="FILE", help="the PNG; - is standard input")
    _add_output(verb, "where to put the image; - is standard output")
    verb.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change one parameter: a string as it is, everything else as JSON; no VALUE takes the default",
    )
    verb.add_argument("--model", type=_model_id, metavar="ID", help="ID of the model (default: that of the original)")
    verb.add_argument(
        "--image",
        type=_input_file("--image"),
        action=_Collect,
        default=(),
        metavar="FILE",
        help="one of the images that it was generated from, in any order; - is standard input",
    )
    verb.set_defaults(run=repeat.repeat)


def _setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not NAME=VALUE")
    return name, value


def _add_parameter(verb: argparse.ArgumentParser, name: str, parameter: Parameter, *, default: Any) -> None:
    option, _, metavar = parameter.option.partition(" ")
    if type_of(name) in _LISTS:
        convert = _LISTS[type_of(name)]
        verb.add_argument(
            option, dest=name, type=convert, action=_Collect, default=default, metavar=metavar, help=summary(name)
        )
    elif choices := choices_of(name):
        verb.add_argument(option, dest=name, choices=choices, default=default, help=summary(name))
    else:
        convert = _input_file(option) if type_of(name) is InputImage else _SINGLE.get(type_of(name), type_of(name))
        verb.add_argument(option, dest=name, type=convert, default=default, metavar=metavar, help=summary(name))


def _lora(text: str) -> RequestedLora:
    lora_id, separator, weight = text.rpartition(":")
    return RequestedLora(lora_id, _finite(weight)) if separator else RequestedLora(text)


def _control(text: str) -> Control:
    name, separator, path = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not ID=FILE or ID:SCALE=FILE")
    image = _input_file("--control")(path)
    control_id, separator, scale = name.rpartition(":")
    return Control(id=control_id, image=image, scale=_finite(scale)) if separator else Control(id=name, image=image)


def _enlarge(text: str) -> Enlarge:
    scale, separator, strength = text.partition(":")
    return Enlarge(scale=_finite(scale), strength=_finite(strength)) if separator else Enlarge(scale=_finite(scale))


def _input_file(option: str) -> Callable[[str], InputFile]:
    """The file is read later, after wrong options are reported."""
    return lambda text: InputFile(option, str(_path(text)))


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def _model_id(text: str) -> str:
    if not is_model_id(text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not up to 64 of a-z, 0-9, '.', '_' and '-'")
    return text


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a finite number")
    return number


_SINGLE: dict[Any, Any] = {float: _finite, Enlarge: _enlarge}
# Options that may be repeated, by the type of their list.
_LISTS: dict[Any, Any] = {
    tuple[RequestedLora, ...]: _lora,
    tuple[str, ...]: str,
    tuple[RequestedControl, ...]: _control,
    tuple[InputImage, ...]: _input_file("--reference"),
}


def _seconds(text: str) -> float:
    number = _finite(text)
    if not 0 < number <= 86400:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not from 0 to 86400")
    return number
