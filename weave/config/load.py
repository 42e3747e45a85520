"""From a TOML file to a Config."""

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from weave.config.offers import check
from weave.config.ownership import read_checked
from weave.config.schema import BoundsOverride, Config, ConfigError, DefaultsOverride, ModelConfig

_SYSTEM_PATH = Path("/etc/weave/weave-compute.toml")
_SOURCE_TREE = Path(__file__).resolve().parents[2]
_DEMO_MODEL_FOLDERS = (
    _SOURCE_TREE / "models" / "shapes",
    Path(sys.prefix) / "share" / "weave-compute" / "models" / "shapes",
    Path("/usr/share/weave-compute/models/shapes"),
)


def default_path(*, system: bool = False) -> Path:
    """Where the system's or a user's config file is looked for."""
    if system:
        return _SYSTEM_PATH
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "weave" / "weave-compute.toml"


def load(path: Path | None = None, *, system: bool = False) -> Config:
    """The config in `path`, or the system's or user's, then, in the order of their names, the *.toml in the folder
    conf.d beside it, of which the later win. Where none of them has [models], the demo model is what there is.
    Raises ConfigError; in system mode also where the system's file is missing: only it may ask for require_mac."""
    given = path is not None
    path = path or default_path(system=system)
    if system and not given and not path.exists():
        raise ConfigError(
            f"{path}: there is no such file; in system mode it says whether require_mac is true. Get the packages' "
            f"back with: printf '[system]\\nrequire_mac = true\\n' > {path}"
        )
    drop_ins = sorted(path.parent.glob("conf.d/*.toml"))
    files = [path, *drop_ins] if given or path.exists() else drop_ins
    merged: dict[str, Any] = {}
    for file in files:
        _merge(merged, _read(file))
    return _convert(path, merged)


def default_config() -> Config:
    """The demo model alone, with every limit at its default. Raises ConfigError where the model is not installed."""
    for folder in _DEMO_MODEL_FOLDERS:
        if folder.is_dir():
            return Config(models={"shapes": _demo_model(folder)}, default_model="shapes")
    raise ConfigError("no config file has [models], and the demo model is not installed; see weave-compute(1)")


def _demo_model(folder: Path) -> ModelConfig:
    side = {"min": 64, "max": 64}
    return ModelConfig(
        path=str(folder),
        family="sd1",
        title="Coloured shapes, 64x64 (demo)",
        bounds=BoundsOverride(width=side, height=side, pixels={"min": 64 * 64, "max": 64 * 64 * 8}),
        defaults=DefaultsOverride(width=64, height=64, steps=20, cfg_scale=3.0, scheduler="ddim"),
    )


def _read(path: Path) -> dict[str, Any]:
    """One file's tables, checked by themselves, so that an error names the file that it is in."""
    try:
        tables = tomllib.loads(read_checked(path).decode())
        msgspec.convert({"models": {}} | tables, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, no UTF-8, a number of 5000 digits; deep nesting
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
        config = structs.replace(config, models={key: _absolute(path.parent, m) for key, m in config.models.items()})
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, ~ of nobody, a NUL
        raise ConfigError(f"{path}: a model's path cannot be resolved: {error}") from None
    try:
        check(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def _absolute(base: Path, model: ModelConfig) -> ModelConfig:
    """Paths in the file may be relative to it, or start with ~."""
    layout = model.layout and str((base / Path(model.layout).expanduser()).resolve())
    return structs.replace(model, path=str((base / Path(model.path).expanduser()).resolve()), layout=layout)
