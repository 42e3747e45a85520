"""weave-compute: the command."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from weave import __version__, log
from weave import config as weave_config
from weave.config import ConfigError
from weave.sandbox.process import harden
from weave.supervisor.socket import AttachedSocket, Entrance, ListeningSocket, default_socket_path
from weave.supervisor.supervisor import Supervisor

STANDARD_ERROR = 2
EXIT_CONFIG = 78  # sysexits.h: EX_CONFIG; systemd does not restart on it


def parser() -> argparse.ArgumentParser:
    """The options; weave-compute(1) says more."""
    options = argparse.ArgumentParser(
        prog="weave-compute", description="Owns one GPU for diffusion models and serves local clients."
    )
    options.add_argument("--config", type=Path, metavar="FILE", help="the config file, instead of the user's")
    entrance = options.add_mutually_exclusive_group()
    entrance.add_argument("--socket", type=Path, metavar="PATH", help="the socket, instead of the user's")
    entrance.add_argument(
        "--socket-path", type=Path, metavar="PATH", help="serve the one program that listens on PATH, and end with it"
    )
    options.add_argument("--check-config", action="store_true", help="say whether the config is good, then exit")
    options.add_argument("--version", action="version", version=f"weave-compute {__version__}")
    return options


def main() -> None:
    """Exit status 0 after an orderly stop, 78 where config or socket cannot be used."""
    options = parser().parse_args()
    open_standard_streams()
    try:
        config = weave_config.load(options.config)
        if options.check_config:
            print(f"good: {len(config.models)} models")
            return
        harden()
        entrance: Entrance
        if options.socket_path is not None:
            entrance = AttachedSocket(options.socket_path)
        else:
            entrance = ListeningSocket(options.socket or default_socket_path())
    except ConfigError as error:
        print(f"weave-compute: {error}", file=sys.stderr)
        raise SystemExit(EXIT_CONFIG) from None
    try:
        asyncio.run(Supervisor(config, entrance, lambda: weave_config.load(options.config)).run())
    finally:
        entrance.close()
    log.write("supervisor", "stopped")


def open_standard_streams() -> None:
    """Started without them, the next files opened would take their places, and the log go to a socket."""
    while (descriptor := os.open("/dev/null", os.O_RDWR)) <= STANDARD_ERROR:
        pass
    os.close(descriptor)
