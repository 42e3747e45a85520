"""The config file: TOML, checked once, then frozen structs. Each child gets only its own part of it."""

from weave.config.load import default_config, default_path, load
from weave.config.schema import Config, ConfigError

__all__ = ["Config", "ConfigError", "default_config", "default_path", "load"]
