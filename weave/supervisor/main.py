"""weave-compute: the command."""

import argparse
import asyncio
import os
import sys
from functools import partial
from pathlib import Path

import prctl

from weave import __version__, log
from weave.config.ownership import open_own_folder
from weave.config.schema import Config, ConfigError
from weave.protocol import SYSTEM_SOCKET_PATH
from weave.protocol.text import visible
from weave.sandbox import landlock, mac, worker_files
from weave.sandbox.hardening import drop_capabilities, harden, reset_signals
from weave.supervisor import accounts
from weave.supervisor.audit import open_audit
from weave.supervisor.record_mode.recorder import Recorder
from weave.supervisor.settings import read_settings
from weave.supervisor.sockets.activated import ActivatedSocket
from weave.supervisor.sockets.attached import AttachedSocket
from weave.supervisor.sockets.client_socket import ClientSocket
from weave.supervisor.sockets.listening import ListeningSocket, default_socket_path
from weave.supervisor.supervisor import Supervisor

STANDARD_ERROR = 2
EXIT_OS_ERROR = 71  # sysexits.h: EX_OSERR
EXIT_CONFIG = 78  # sysexits.h: EX_CONFIG; systemd does not restart on it


def parser() -> argparse.ArgumentParser:
    """The options; weave-compute(1) describes them in full."""
    options = argparse.ArgumentParser(
        prog="weave-compute", description="Owns a machine's GPUs for diffusion models and serves local clients."
    )
    options.add_argument("--config", type=path, metavar="FILE", help="read this config file instead of the default one")
    options.add_argument("--system", action="store_true", help="serve other users too, as the config allows")
    sockets = options.add_mutually_exclusive_group()
    sockets.add_argument("--socket", type=path, metavar="PATH", help="listen on this socket instead of the default one")
    sockets.add_argument(
        *("-s", "--socket-path"),
        type=path,
        metavar="PATH",
        help="serve only the program that listens on PATH, and exit with it",
    )
    options.add_argument("--record", action="store_true", help="record the worker's forbidden calls and allow them")
    options.add_argument("--check-config", action="store_true", help="check the config, then exit")
    options.add_argument("--version", action="version", version=f"weave-compute {__version__}")
    return options


def path(text: str) -> Path:
    """An option's path. Path("") would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def main() -> None:
    """Exit status 0 after an orderly stop, 78 if the config or the socket cannot be used, 71 on a system error."""
    options = parser().parse_args()
    if options.system and options.socket_path is not None:
        parser().error("--socket-path serves one program as its own user; it excludes --system")
    if options.record and (options.system or options.socket_path is not None):
        parser().error("--record allows forbidden calls, for your own user only: not with --system or --socket-path")
    recorder = Recorder() if options.record else None
    open_standard_streams()
    client_socket: ClientSocket | None = None
    try:
        read = partial(read_settings, options.config, system=options.system, attached=options.socket_path is not None)
        settings = read()
        if options.check_config:
            print(f"good: {len(settings.config.models)} models")
            return
        reset_signals()
        harden()
        confined = enter_profile(required=options.system and settings.config.system.require_mac)
        client_socket = open_client_socket(options, settings.config)
        # Everything privileged is above this line.
        layers = lock_down(settings.config, client_socket, other_users=settings.other_users, record=options.record)
        layers += mac.layer_of(confined)
        open_audit(settings.config)
        if recorder is not None:
            log.write("supervisor", "recording")
        supervisor = Supervisor(settings, client_socket, layers, read, confined, recorder=recorder)
        log.write("supervisor", "stopped", reason=asyncio.run(supervisor.run()))
    except (ConfigError, OSError) as error:
        print(f"weave-compute: {visible(str(error))}", file=sys.stderr)
        raise SystemExit(EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_OS_ERROR) from None
    finally:
        if client_socket is not None:
            client_socket.close()
        if recorder is not None:
            for line in recorder.summary():
                print(line)


def enter_profile(*, required: bool) -> mac.Mac | None:
    """Enter the supervisor's AppArmor profile or SELinux domain, if systemd started the daemon in ours. Raises
    ConfigError if one is `required` and none is enforced."""
    confined = mac.enter()
    if required and (confined is None or not confined.enforced):
        label = confined.labels["supervisor"] if confined else mac.label_of(mac.OURSELVES) or "none"
        raise ConfigError(
            f"system.require_mac is true, but our label is {label}, which confines nothing; start the service with "
            "systemd, with AppArmor's profile weave-compute or SELinux's module weave_compute loaded and enforcing"
        )
    return confined


def open_client_socket(options: argparse.Namespace, config: Config) -> ClientSocket:
    """The socket that the options and the environment ask for. Raises ConfigError."""
    if options.socket_path is not None:
        return AttachedSocket(options.socket_path)
    if ActivatedSocket.is_available():
        return ActivatedSocket()
    if not options.system:
        return ListeningSocket(options.socket or default_socket_path())
    group = accounts.socket_group(config.system)
    if os.geteuid() == 0:
        # A file's owner may give it to a group that he is in. So restore() works below lock_down(), without CAP_CHOWN.
        os.setgroups([group])
    mode = int(config.system.socket_mode, 8)
    return ListeningSocket(options.socket or SYSTEM_SOCKET_PATH, mode=mode, group=group)


def lock_down(
    config: Config, client_socket: ClientSocket, *, other_users: bool, record: bool = False
) -> tuple[str, ...]:
    """From here on we change no files but the socket, audit and metrics, and have no capabilities, or, with
    `other_users`, only those to start children as other users and to kill them. Returns the layers. Raises ConfigError,
    OSError.

    `record`: a recorded worker inherits this, and may open devices that are not on its list."""
    files = [Path(file) for file in (config.audit.file, config.metrics.file) if file is not None]
    for file in files:
        os.close(open_own_folder(file.parent))
    if isinstance(client_socket, ListeningSocket):
        files.append(client_socket.path)
    keep = (prctl.CAP_KILL, prctl.CAP_SETGID, prctl.CAP_SETUID) if other_users else ()
    written = [*worker_files.WRITABLE, *([Path("/dev")] if record else [])]
    landlocked = landlock.restrict_changes(folders=[file.parent for file in files], written=written)
    return (landlocked, drop_capabilities(keep=keep), "no-new-privs")


def open_standard_streams() -> None:
    """Open those that are closed. Otherwise the next files opened would take their numbers, and the log could go to a
    socket."""
    while (descriptor := os.open("/dev/null", os.O_RDWR)) <= STANDARD_ERROR:
        pass
    os.close(descriptor)
