"""weavectl add: looks at a model, embedding or ControlNet and adds it to the config. In system mode it prints what root
must run instead."""

import argparse
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from weave.config import load as config_file
from weave.config.drop_in import DropIn, free_id, plan, write
from weave.config.schema import Config, ConfigError, ControlConfig, EmbeddingConfig, ModelConfig
from weave.models.assets import Source
from weave.models.detect import Detected, detect
from weave.models.files import ModelFilesRefused
from weave.protocol.text import LONGEST_TITLE, visible
from weave.weavectl.doctor import EXIT_PROBLEM
from weave.weavectl.known import show_known
from weave.weavectl.locate import is_systems, socket_to_check
from weave.weavectl.look import ControlLook, EmbeddingLook, Look, look_at, look_at_control, look_at_embedding
from weave.weavectl.output import Output, UsageError

# Where AppArmor and SELinux let the system's worker read models.
_SYSTEM_MODELS = Path("/var/lib/weave/models")


class _Target(NamedTuple):
    """The config that something is added to: `given` is --config, `path` the main file."""

    given: Path | None
    path: Path
    system: bool
    config: Config


class _Plan(NamedTuple):
    """`table` is models, embeddings or controls. `copies` are what root must copy first, and where to. The default
    model may change, if the config names none."""

    table: str
    added_id: str
    copies: dict[Path, Path]
    source: Source
    drop_in: DropIn
    is_default: bool


def add(options: argparse.Namespace, output: Output) -> int:
    """Look at a model, embedding or ControlNet, and add it to the config."""
    if options.known == (options.path is not None):
        raise UsageError("name a model's or ControlNet's folder or file, or an embedding's file, or --known")
    if options.known:
        return show_known(output)
    try:
        return _add(options, output)
    except (ConfigError, ModelFilesRefused, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        output.line(str(error), good=False, detail=str(error))
        return EXIT_PROBLEM


def _add(options: argparse.Namespace, output: Output) -> int:
    target = _target(options)
    detected = detect(options.path, options.layout, dict(options.part))
    look = _look(detected, target.config)
    _show(output, look.lines())
    fields = look.fields()
    if look.faults:
        _show(output, ["", "Not added: fix the faults first."])
        _report(output, good=False, **fields)
        return EXIT_PROBLEM
    planned = _plan(options, target, detected, look)
    commands = _commands(planned, target.config) if target.system else []
    _show(output, ["", f"{planned.drop_in.path}:", *_indented(planned.drop_in.text.splitlines())])
    is_written = not (target.system or options.dry_run)
    if is_written:
        write(planned.drop_in)
    _show(output, ["", *_what_follows(planned, target, commands, is_written=is_written)])
    added = {"id": planned.added_id, "file": str(planned.drop_in.path), "toml": planned.drop_in.text}
    _report(output, good=True, **fields, **added, written=is_written, as_root=commands)
    return 0


def _look(detected: Detected, config: Config) -> Look | EmbeddingLook | ControlLook:
    if detected.is_control:
        return look_at_control(detected)
    embedding = detected.embedding
    return look_at(detected, config.device) if embedding is None else look_at_embedding(detected, embedding)


def _target(options: argparse.Namespace) -> _Target:
    system = options.config is None and is_systems(socket_to_check(options))
    path = options.config or config_file.default_path(system=system)
    # Only what the config itself has: the demo model is not served beside others, and may not be installed.
    without_demo = DropIn(path.parent / "conf.d" / "none.toml", "[models]")
    return _Target(options.config, path, system, config_file.load(options.config, system=system, planned=without_demo))


def _plan(
    options: argparse.Namespace, target: _Target, detected: Detected, look: Look | EmbeddingLook | ControlLook
) -> _Plan:
    """Raises ConfigError if it is in the config already, or the daemon would refuse the config with it."""
    paths = _paths(detected.source)
    for path in paths:
        _check_printable(path)
    table = detected.table
    present: Mapping[str, ModelConfig | EmbeddingConfig | ControlConfig] = getattr(target.config, table)
    own = next((name for name, it in present.items() if it.path == str(paths[0].resolve())), None)
    if own is not None and options.id is None:
        raise ConfigError(f"{paths[0]} is in the config already, as {own}; to add it again, give it another --id")
    taken = present.keys() | {file.stem for file in target.path.parent.glob("conf.d/*.toml")}
    added_id = options.id or free_id(detected.name.rpartition("/")[2], taken)
    if added_id in present:
        raise ConfigError(f"{table}.{added_id} is in the config already; choose another --id")
    copies = _copies(paths, _SYSTEM_MODELS / added_id) if target.system else {}
    source = _moved(detected.source, copies)
    title = visible(detected.name)[:LONGEST_TITLE] if options.title is None else options.title
    family = detected.families[0]
    drop_in = plan(
        target.path,
        table,
        added_id,
        source=source,
        family=family,
        title=title,
        scheduler=look.scheduler,
        references=look.references,
    )
    for file in (drop_in.path, *([_SYSTEM_MODELS / added_id] if copies else [])):
        if file.exists():
            raise ConfigError(f"{file} exists, and is not overwritten; choose another --id")
    after = config_file.load(target.given, system=target.system, planned=drop_in)
    is_default = table == "models" and added_id == (after.default_model or next(iter(after.models)))
    return _Plan(table, added_id, copies, source, drop_in, is_default)


def _paths(source: Source) -> list[Path]:
    return [source.path, *([source.layout] if source.layout else []), *source.parts.values()]


def _copies(paths: Iterable[Path], folder: Path) -> dict[Path, Path]:
    """Where root copies what is not where AppArmor and SELinux let the worker read it: a model's folder as `folder`,
    other things into it."""
    outside = [path for path in paths if not path.is_relative_to(_SYSTEM_MODELS)]
    first = {path: folder for path in outside[:1] if path.is_dir()}
    names = [f"{number}-{path.name}" if number else path.name for number, path in enumerate(outside)]
    return {path: folder / name for path, name in zip(outside, names, strict=True)} | first


def _moved(source: Source, copies: Mapping[Path, Path]) -> Source:
    layout = source.layout and copies.get(source.layout, source.layout)
    parts = {part: copies.get(path, path) for part, path in source.parts.items()}
    return Source(copies.get(source.path, source.path), layout, parts)


def _check_printable(path: Path) -> None:
    """What is shown must be what is written, and what root is to run."""
    if hidden := [character for character in str(path) if not character.isprintable()]:
        raise ConfigError(f"{path}: the path holds U+{ord(hidden[0]):04X}, which cannot be shown; rename the folder")


def _commands(planned: _Plan, config: Config) -> list[str]:
    """What root must run in system mode."""
    top = _SYSTEM_MODELS / planned.added_id
    served = shlex.join(map(str, [top] if planned.copies else _paths(planned.source)))
    file = planned.drop_in.path
    return [
        *([f"install -d -m 755 {shlex.quote(str(top))}"] if planned.copies else []),
        *(_copying(path, copy) for path, copy in planned.copies.items()),
        f"chmod -R a+rX {served}",
        f"install -d -m 755 {shlex.quote(str(file.parent))}",
        f"install -m 644 /dev/stdin {shlex.quote(str(file))} <<'END'\n{planned.drop_in.text}END",
        f"runuser -u {shlex.quote(config.system.worker_user)} -- find -L {served} ! -readable",
        "systemctl reload weave-compute",
    ]


def _copying(path: Path, copy: Path) -> str:
    """Links in a folder may lead anywhere: what its owner cannot read is not copied to where all can."""
    owner = path.stat()
    as_owner = f"setpriv --reuid={owner.st_uid} --regid={owner.st_gid} --clear-groups"
    given, target = shlex.quote(str(path)), shlex.quote(str(copy))
    if path.is_file():
        return f"{as_owner} cat {given} | install -m 644 /dev/stdin {target}"
    unpacking = f"install -d -m 755 {target} && tar -x --no-same-owner -C {target}"
    return f"{as_owner} tar -ch --exclude-vcs -C {given} . | ({unpacking})"


def _what_follows(planned: _Plan, target: _Target, commands: list[str], *, is_written: bool) -> Iterator[str]:
    if planned.table == "models" and not target.config.models:
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
    if planned.table == "models":
        yield f"Then: weavectl load {planned.added_id}"
    elif planned.table == "controls":
        yield f'Then: weavectl generate "..." --control {planned.added_id}=IMAGE.png'
    else:
        yield f'Then: weavectl generate "... {planned.added_id} ..." --embedding {planned.added_id}'


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
