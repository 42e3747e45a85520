"""The config together with the accounts that it names."""

import os
from pathlib import Path
from typing import Literal

from msgspec import Struct

from weave.config import load as config_file
from weave.config.child_configs import Access
from weave.config.schema import Config
from weave.sandbox import worker_files
from weave.sandbox.account import Account
from weave.supervisor import accounts


class Settings(Struct, frozen=True):
    """Read at the start and on SIGHUP. The accounts are None where the children run as our own user."""

    mode: Literal["user", "system", "attached"]
    config: Config
    access: Access
    broker_account: Account | None = None
    worker_account: Account | None = None

    @property
    def other_users(self) -> bool:
        """Whether the children run as other users."""
        return self.broker_account is not None


def read_settings(config_path: Path | None, *, system: bool, attached: bool) -> Settings:
    """Read the config, and look up the users and groups in it. Raises ConfigError, OSError."""
    config = config_file.load(config_path, system=system)
    if not system:
        return Settings("attached" if attached else "user", config, accounts.own_access())
    access = accounts.system_access(config.system)
    if os.geteuid() != 0:
        return Settings("system", config, access)
    broker = accounts.broker_account(config.system)
    worker = accounts.worker_account(config.system, worker_files.DEVICES)
    return Settings("system", config, access, broker, worker)
