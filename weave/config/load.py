"""Reads the TOML files into a Config."""

import os
import sys
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import structs

from weave.config.drop_in import DropIn
from weave.config.offers import check
from weave.config.ownership import read_checked
from weave.config.schema import (
    BoundsOverride,
    Config,
    ConfigError,
    ControlConfig,
    DefaultsOverride,
    EmbeddingConfig,
    LoraConfig,
    ModelConfig,
)

Addition = TypeVar("Addition", LoraConfig, EmbeddingConfig, ControlConfig)

_SYSTEM_PATH = Path("/etc/weave/weave-compute.toml")
_SOURCE_TREE = Path(__file__).resolve().parents[2]
_DEMO_MODEL_FOLDERS = (
    _SOURCE_TREE / "models" / "shapes",
    Path(sys.prefix) / "share" / "weave-compute" / "models" / "shapes",
    Path("/usr/share/weave-compute/models/shapes"),
)


def default_path(*, system: bool = False) -> Path:
    """The default path of the system's or the user's config file."""
    if system:
        return _SYSTEM_PATH
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "weave" / "weave-compute.toml"


def load(path: Path | None = None, *, system: bool = False, planned: DropIn | None = None) -> Config:
    """Read `path`, by default the system's or the user's file, and then conf.d/*.toml in the same folder in order of
    name; later files override earlier ones. `planned` is read as if it existed. If none of them has [models], the
    config has the demo model. Raises ConfigError; in system mode also if the system's file is missing, because it
    decides about require_mac."""
    given = path is not None
    path = path or default_path(system=system)
    if system and not given and not path.exists():
        raise ConfigError(
            f"{path}: there is no such file; in system mode it decides whether require_mac is true. Restore the "
            f"package's file with: printf '[system]\\nrequire_mac = true\\n' > {path}"
        )
    drop_ins = sorted([*path.parent.glob("conf.d/*.toml"), *([planned.path] if planned else [])])
    files = [path, *drop_ins] if given or path.exists() else drop_ins
    merged: dict[str, Any] = {}
    for file in files:
        _merge(merged, _parse(file, planned.text) if planned and file == planned.path else _read(file))
    return _convert(path, merged)


def default_config() -> Config:
    """The demo model, and defaults for all else. Raises ConfigError if the model is not installed."""
    for folder in _DEMO_MODEL_FOLDERS:
        if folder.is_dir():
            return Config(models={"shapes": _demo_model(folder)}, default_model="shapes")
    raise ConfigError(
        "no config file has [models], and the demo model is not installed; weavectl add puts a model into the config"
    )


def _demo_model(folder: Path) -> ModelConfig:
    side = {"min": 64, "max": 128}
    return ModelConfig(
        path=str(folder),
        family="sd1",
        title="Coloured shapes, 128x128 (demo)",
        bounds=BoundsOverride(width=side, height=side, pixels={"min": 64 * 64, "max": 128 * 128 * 8}),
        defaults=DefaultsOverride(width=128, height=128, steps=20, cfg_scale=2.0, scheduler="ddim"),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parse(path, read_checked(path).decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    """One file's tables. Each file is checked alone first, so that an error names the right file."""
    try:
        tables = tomllib.loads(text)
        msgspec.convert({"models": {}} | tables, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, a number of 5000 digits; deep nesting
        raise ConfigError(f"{path}: not TOML: {error}") from None
    return tables


def _merge(tables: dict[str, Any], later: dict[str, Any]) -> None:
    for name, value in later.items():
        if isinstance(value, dict) and isinstance(tables.get(name), dict):
            _merge(tables[name], value)
        else:
            tables[name] = value


def _convert(path: Path, tables: dict[str, Any]) -> Config:
    try:
        config = msgspec.convert(tables, Config)
        if "models" not in tables:
            demo = default_config()
            default_model = config.default_model or demo.default_model
            config = structs.replace(config, models=demo.models, default_model=default_model)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        config = structs.replace(
            config,
            models={name: _with_absolute_paths(path.parent, model) for name, model in config.models.items()},
            loras=_resolved(path.parent, config.loras),
            embeddings=_resolved(path.parent, config.embeddings),
            controls=_resolved(path.parent, config.controls),
        )
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, ~ of an unknown user, a NUL
        what = "a model, LoRA, embedding or ControlNet"
        raise ConfigError(f"{path}: the path of {what} cannot be resolved: {error}") from None
    try:
        check(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def _with_absolute_paths(base: Path, model: ModelConfig) -> ModelConfig:
    layout = None if model.layout is None else _absolute(base, model.layout)
    parts = {part: _absolute(base, path) for part, path in model.parts.items()}
    return structs.replace(model, path=_absolute(base, model.path), layout=layout, parts=parts)


def _resolved(base: Path, tables: dict[str, Addition]) -> dict[str, Addition]:
    return {name: structs.replace(table, path=_absolute(base, table.path)) for name, table in tables.items()}


def _absolute(base: Path, path: str) -> str:
    """A path in the config may be relative to the file's folder, or start with ~."""
    return str((base / Path(path).expanduser()).resolve())
