"""Added to the installed daemon as weave/attack.py: each process, before it locks itself down, tries what only AppArmor
or SELinux can still refuse, and logs the outcome."""

import os
import socket
import threading
from collections.abc import Callable

from weave import log

MODEL = "/usr/share/weave-compute/models/shapes/vae/config.json"


def open_file(path: str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags, 0o600))


def execute() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)


def name_a_thread() -> None:
    """By way of /proc, as pthread_setname_np(3) does for another thread."""
    open_file(f"/proc/self/task/{threading.get_native_id()}/comm", os.O_RDWR)


def listen() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"\0cuda-uvmfd-4026531836-{os.getpid()}")
        listening.listen()


def write_attribute(folder: str, text: str) -> None:
    attribute = os.open(f"/proc/self/attr/{folder}current", os.O_WRONLY)
    os.write(attribute, text.encode())
    os.close(attribute)


ATTACKS: dict[str, Callable[[], object]] = {
    "read a file of the system's": lambda: open_file("/etc/hostname"),
    "read the config": lambda: open_file("/etc/weave/weave-compute.toml"),
    "read a model": lambda: open_file(MODEL),
    "open a GPU": lambda: open_file("/dev/nvidia0", os.O_RDWR),
    "name a thread as CUDA does": name_a_thread,
    "listen as CUDA does": listen,
    "open another device": lambda: open_file("/dev/weave-test", os.O_RDWR),
    "write a file": lambda: open_file(f"/tmp/weave-attack-{os.getpid()}", os.O_WRONLY | os.O_CREAT),
    "execute": execute,
    "network": lambda: socket.socket(socket.AF_INET).close(),
    "routes": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "connect to another daemon": lambda: connect("/run/dbus/system_bus_socket"),
    "leave AppArmor": lambda: write_attribute("apparmor/", "changeprofile unconfined"),
    "leave SELinux": lambda: write_attribute("", "system_u:system_r:init_t:s0"),
}


def run(process: str) -> None:
    held = False
    for name, attack in ATTACKS.items():
        if name.startswith("leave") and not held:
            continue  # nothing to leave; in another domain the process would not be attested
        try:
            attack()
            result = "gained"
        except OSError as error:
            result, held = f"refused: {error.strerror}", True
        log.write(process, "attack", name=name, result=result)
