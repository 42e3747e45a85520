"""weavectl add: looks at a model and adds it to the config. In system mode it prints what root must run instead."""

import argparse
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from weave.config import load as config_file
from weave.config.drop_in import DropIn, free_id, plan, write
from weave.config.schema import Config, ConfigError
from weave.models.detect import Detected, detect
from weave.models.files import ModelFilesRefused
from weave.protocol.text import LONGEST_TITLE, visible
from weave.weavectl.doctor import EXIT_PROBLEM
from weave.weavectl.known import show_known
from weave.weavectl.locate import is_systems, socket_to_check
from weave.weavectl.look import look_at
from weave.weavectl.output import Output, UsageError

# Where AppArmor and SELinux let the system's worker read models.
_SYSTEM_MODELS = Path("/var/lib/weave/models")


class _Target(NamedTuple):
    """The config that a model is added to: `given` is --config, `path` the main file."""

    given: Path | None
    path: Path
    system: bool
    config: Config


class _Plan(NamedTuple):
    """`model` is the folder that the drop-in names. The default model may change, if the config names none."""

    model_id: str
    model: Path
    drop_in: DropIn
    is_default: bool


def add(options: argparse.Namespace, output: Output) -> int:
    """Look at a model's folder, and add it to the config."""
    if options.known == (options.path is not None):
        raise UsageError("name a model's folder, or --known")
    if options.known:
        return show_known(output)
    try:
        return _add(options, output)
    except (ConfigError, ModelFilesRefused, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        output.line(str(error), good=False, detail=str(error))
        return EXIT_PROBLEM


def _add(options: argparse.Namespace, output: Output) -> int:
    target = _target(options)
    detected = detect(options.path)
    look = look_at(detected, target.config.device)
    _show(output, look.lines())
    fields = look.fields()
    if look.faults:
        _show(output, ["", "Not added: fix the faults first."])
        _report(output, good=False, **fields)
        return EXIT_PROBLEM
    planned = _plan(options, target, detected)
    commands = _commands(planned, detected, target.config) if target.system else []
    _show(output, ["", f"{planned.drop_in.path}:", *_indented(planned.drop_in.text.splitlines())])
    is_written = not (target.system or options.dry_run)
    if is_written:
        write(planned.drop_in)
    _show(output, ["", *_what_follows(planned, target, commands, is_written=is_written)])
    added = {"id": planned.model_id, "file": str(planned.drop_in.path), "toml": planned.drop_in.text}
    _report(output, good=True, **fields, **added, written=is_written, as_root=commands)
    return 0


def _target(options: argparse.Namespace) -> _Target:
    system = options.config is None and is_systems(socket_to_check(options))
    path = options.config or config_file.default_path(system=system)
    # Only what the config itself has: the demo model is not served beside others, and may not be installed.
    without_demo = DropIn(path.parent / "conf.d" / "none.toml", "[models]")
    return _Target(options.config, path, system, config_file.load(options.config, system=system, planned=without_demo))


def _plan(options: argparse.Namespace, target: _Target, detected: Detected) -> _Plan:
    """Raises ConfigError if the model is in the config already, or the daemon would refuse the config with it."""
    _check_printable(detected.path)
    models = target.config.models
    own = next((name for name, model in models.items() if model.path == str(detected.path.resolve())), None)
    if own is not None and options.id is None:
        raise ConfigError(f"{detected.path} is in the config already, as {own}; to add it again, give it another --id")
    taken = models.keys() | {file.stem for file in target.path.parent.glob("conf.d/*.toml")}
    model_id = options.id or free_id(detected.name.rpartition("/")[2], taken)
    if model_id in models:
        raise ConfigError(f"models.{model_id} is in the config already; choose another --id")
    in_place = not target.system or detected.path.is_relative_to(_SYSTEM_MODELS)
    model = detected.path if in_place else _SYSTEM_MODELS / model_id
    title = visible(detected.name)[:LONGEST_TITLE] if options.title is None else options.title
    drop_in = plan(target.path, model_id, path=model, family=detected.families[0], title=title)
    for file in (drop_in.path, *([] if in_place else [model])):
        if file.exists():
            raise ConfigError(f"{file} exists, and is not overwritten; choose another --id")
    after = config_file.load(target.given, system=target.system, planned=drop_in)
    return _Plan(model_id, model, drop_in, is_default=model_id == (after.default_model or next(iter(after.models))))


def _check_printable(path: Path) -> None:
    """What is shown must be what is written, and what root is to run."""
    if hidden := [character for character in str(path) if not character.isprintable()]:
        raise ConfigError(f"{path}: the path holds U+{ord(hidden[0]):04X}, which cannot be shown; rename the folder")


def _commands(planned: _Plan, detected: Detected, config: Config) -> list[str]:
    """What root must run in system mode."""
    model, file = shlex.quote(str(planned.model)), planned.drop_in.path
    copying = [f"install -d -m 755 {model}", f"{_reading_as_owner(detected.path)} | tar -x --no-same-owner -C {model}"]
    return [
        *(copying if planned.model != detected.path else []),
        f"chmod -R a+rX {model}",
        f"install -d -m 755 {shlex.quote(str(file.parent))}",
        f"install -m 644 /dev/stdin {shlex.quote(str(file))} <<'END'\n{planned.drop_in.text}END",
        f"runuser -u {shlex.quote(config.system.worker_user)} -- find -L {model} ! -readable",
        "systemctl reload weave-compute",
    ]


def _reading_as_owner(folder: Path) -> str:
    """Links in the folder may lead anywhere: what its owner cannot read is not copied to where all can."""
    owner = folder.stat()
    as_owner = f"setpriv --reuid={owner.st_uid} --regid={owner.st_gid} --clear-groups"
    return f"{as_owner} tar -ch --exclude-vcs -C {shlex.quote(str(folder))} ."


def _what_follows(planned: _Plan, target: _Target, commands: list[str], *, is_written: bool) -> Iterator[str]:
    if not target.config.models:
        yield "The demo model is served only while the config has no other."
    if planned.is_default:
        yield "It becomes the default model, unless the config names another as default_model."
    if commands:
        yield "Nothing is written, since the system's config belongs to root. Root must run this, as it is:"
        yield from _indented(line for command in commands for line in command.splitlines())
        yield f"runuser lists the files that {target.config.system.worker_user}, the worker's user, cannot read."
    elif is_written:
        yield "Written. Next, if the daemon runs: systemctl --user reload weave-compute"
        yield "    or, for a daemon started by hand: pkill -HUP -x weave-compute"
    else:
        yield "Not written (--dry-run)."
    yield f"Then: weavectl load {planned.model_id}"


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _show(output: Output, lines: Iterable[str]) -> None:
    """For people."""
    for line in lines if not output.json else ():
        output.line(line)


def _report(output: Output, **fields: object) -> None:
    """For scripts."""
    if output.json:
        output.line("", **fields)
