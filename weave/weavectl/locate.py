"""Which daemon a command that may run without one is about: the system's, or the user's."""

import argparse
import os
from pathlib import Path

from weave.client import default_socket_path
from weave.config import load as config_file
from weave.protocol import SYSTEM_SOCKET_PATH


def is_systems(socket: Path) -> bool:
    """Whether it is the socket of the system's daemon."""
    return socket == SYSTEM_SOCKET_PATH


def socket_to_check(options: argparse.Namespace) -> Path:
    """The socket to check. If none exists: the system's if only the system has a config, else the user's."""
    found: Path = options.socket or default_socket_path()
    if options.socket is not None or os.path.exists(found):
        return found
    own, systems = (_exists(system=system) for system in (False, True))
    return SYSTEM_SOCKET_PATH if systems and not own else found


def _exists(*, system: bool) -> bool:
    try:
        return os.path.exists(config_file.default_path(system=system))
    except RuntimeError:  # no HOME, and the user is unknown
        return False
