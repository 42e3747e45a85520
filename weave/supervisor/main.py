"""weave-compute: the command."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import prctl

from weave import __version__, log
from weave.config import load as config_file
from weave.config.files import open_own_folder
from weave.config.schema import Config, ConfigError
from weave.protocol import SYSTEM_SOCKET_PATH
from weave.protocol.text import visible
from weave.sandbox import landlock, mac, worker_files
from weave.sandbox.process import drop_capabilities, harden, own_signals
from weave.supervisor import accounts
from weave.supervisor.audit import open_audit
from weave.supervisor.recorder import Recorder
from weave.supervisor.socket import (
    ActivatedSocket,
    AttachedSocket,
    Entrance,
    ListeningSocket,
    default_socket_path,
)
from weave.supervisor.supervisor import Settings, Supervisor

STANDARD_ERROR = 2
EXIT_OS_ERROR = 71  # sysexits.h: EX_OSERR
EXIT_CONFIG = 78  # sysexits.h: EX_CONFIG; systemd does not restart on it


def parser() -> argparse.ArgumentParser:
    """The options; weave-compute(1) says more."""
    options = argparse.ArgumentParser(
        prog="weave-compute", description="Owns one GPU for diffusion models and serves local clients."
    )
    options.add_argument("--config", type=path, metavar="FILE", help="the config file, instead of the usual one")
    options.add_argument("--system", action="store_true", help="serve other users too, as the config says")
    entrance = options.add_mutually_exclusive_group()
    entrance.add_argument("--socket", type=path, metavar="PATH", help="the socket, instead of the usual one")
    entrance.add_argument(
        *("-s", "--socket-path"),
        type=path,
        metavar="PATH",
        help="serve the one program that listens on PATH, and end with it",
    )
    options.add_argument("--record", action="store_true", help="note the worker's forbidden calls and let them through")
    options.add_argument("--check-config", action="store_true", help="say whether the config is good, then exit")
    options.add_argument("--version", action="version", version=f"weave-compute {__version__}")
    return options


def path(text: str) -> Path:
    """An option's; Path("") would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def main() -> None:
    """Exit status 0 after an orderly stop, 78 where config or socket cannot be used, 71 where the system fails us."""
    options = parser().parse_args()
    if options.system and options.socket_path is not None:
        parser().error("--socket-path serves one program as its own user; --system is something else")
    if options.record and (options.system or options.socket_path is not None):
        parser().error("--record lets forbidden calls through, for yourself alone: not with --system or --socket-path")
    recorder = Recorder() if options.record else None
    open_standard_streams()
    entrance: Entrance | None = None
    try:
        read_settings = settings_reader(options)
        settings = read_settings()
        if options.check_config:
            print(f"good: {len(settings.config.models)} models")
            return
        own_signals()
        harden()
        confined = enter_profile(required=options.system and settings.config.system.require_mac)
        entrance = open_entrance(options, settings.config)
        layers = lock_down(
            settings.config, entrance, other_users=settings.broker_account is not None, record=options.record
        )
        layers += mac.layer_of(confined)
        open_audit(settings.config)
        if recorder is not None:
            log.write("supervisor", "recording")
        supervisor = Supervisor(settings, entrance, layers, read_settings, confined, recorder=recorder)
        log.write("supervisor", "stopped", reason=asyncio.run(supervisor.run()))
    except (ConfigError, OSError) as error:
        print(f"weave-compute: {visible(str(error))}", file=sys.stderr)
        raise SystemExit(EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_OS_ERROR) from None
    finally:
        if entrance is not None:
            entrance.close()
        if recorder is not None:
            for line in recorder.summary():
                print(line)


def settings_reader(options: argparse.Namespace) -> Callable[[], Settings]:
    """Reads the config, and looks up whom it names. What it returns raises ConfigError."""

    def read() -> Settings:
        config = config_file.load(options.config, system=options.system)
        if not options.system:
            return Settings("user" if options.socket_path is None else "attached", config, accounts.own_access())
        access = accounts.system_access(config.system)
        if os.geteuid() != 0:
            return Settings("system", config, access)
        broker = accounts.broker_account(config.system)
        worker = accounts.worker_account(config.system, worker_files.DEVICES)
        return Settings("system", config, access, broker, worker)

    return read


def enter_profile(*, required: bool) -> mac.Mac | None:
    """AppArmor's or SELinux's hold on us and our children. Raises ConfigError where it is required and is not there."""
    confined = mac.enter()
    if required and (confined is None or not confined.enforced):
        label = confined.labels["supervisor"] if confined else mac.label_of(mac.OURSELVES) or "none"
        raise ConfigError(
            f"system.require_mac is true, but our label is {label}, which confines nothing; start the service by "
            "systemd with AppArmor's profile weave-compute or SELinux's module weave_compute loaded and enforcing"
        )
    return confined


def open_entrance(options: argparse.Namespace, config: Config) -> Entrance:
    """Where clients come from. Raises ConfigError."""
    if options.socket_path is not None:
        return AttachedSocket(options.socket_path)
    if ActivatedSocket.is_there():
        return ActivatedSocket()
    if not options.system:
        return ListeningSocket(options.socket or default_socket_path())
    group = accounts.socket_group(config.system)
    if os.geteuid() == 0:
        # Whoever owns a file may give it to a group that he is in, even below lock_down().
        os.setgroups([group])
    mode = int(config.system.socket_mode, 8)
    return ListeningSocket(options.socket or SYSTEM_SOCKET_PATH, mode=mode, group=group)


def lock_down(config: Config, entrance: Entrance, *, other_users: bool, record: bool = False) -> tuple[str, ...]:
    """Change no file but socket, audit and metrics; with `other_users`, be able to start children as them and to
    end these; nothing else that root can. After this line nothing more is privileged. Raises ConfigError.

    `record`: a worker that is recorded inherits this, and may open devices that are not on its list."""
    files = [Path(file) for file in (config.audit.file, config.metrics.file) if file is not None]
    for file in files:
        os.close(open_own_folder(file.parent))
    if isinstance(entrance, ListeningSocket):
        files.append(entrance.path)
    keep = (prctl.CAP_KILL, prctl.CAP_SETGID, prctl.CAP_SETUID) if other_users else ()
    written = [*worker_files.WRITABLE, *([Path("/dev")] if record else [])]
    landlocked = landlock.restrict_changes(folders=[file.parent for file in files], written=written)
    return (landlocked, drop_capabilities(keep=keep), "no-new-privs")


def open_standard_streams() -> None:
    """Started without them, the next files opened would take their places, and the log go to a socket."""
    while (descriptor := os.open("/dev/null", os.O_RDWR)) <= STANDARD_ERROR:
        pass
    os.close(descriptor)
