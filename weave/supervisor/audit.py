"""The audit file, which only the supervisor opens."""

from pathlib import Path

from weave import log
from weave.config.ownership import open_own_folder
from weave.config.schema import Config
from weave.protocol.channel import close_all


def open_audit(config: Config) -> None:
    """Write the audit to the config's file as well as to standard error from now on. Raises ConfigError and OSError,
    and then changes nothing."""
    if config.audit.file is None:
        log.open_audit(None, "")
        return
    path = Path(config.audit.file)
    folder = open_own_folder(path.parent)
    try:
        log.open_audit(folder, path.name)
    finally:
        close_all([folder])
