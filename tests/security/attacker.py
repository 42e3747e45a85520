"""Attacks from inside: a child runs a real process's own steps up to and including its lock_down(), then attacks. Run
as `python -m tests.security.attacker ROLE [--without LAYER]`; prints one JSON line per attack. An attack returns what
it gained, or raises OSError if it was refused. The parent acts as the supervisor: it reports a violation and kills.
LAYER is taken away to show that the attack works without it."""

import argparse
import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import prctl

from tests.security import sweeps
from tests.security.driver_attacks import DRIVER
from tests.security.file_attacks import PARENT, WORKER_ONLY, read
from tests.support.daemon import DEMO_MODEL
from weave.protocol.channel import ALL_SEALS, Channel, ChannelClosed, MemfdWriter, socket_pair
from weave.protocol.control_messages import FromWorkerStart, LockedDown
from weave.sandbox import attestation, broker_calls, hardening, landlock, seccomp, worker_calls, worker_files
from weave.sandbox.account import Account

_libc = ctypes.CDLL(None, use_errno=True)
SEALABLE = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING


def syscall(name: str, *arguments: int) -> int:
    """By number, as injected code would, without any wrapper of libc or Python."""
    import pyseccomp

    number = pyseccomp.resolve_syscall(pyseccomp.system_arch(), name)
    result = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def mprotect_executable() -> str:
    page = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    syscall("mprotect", address, 4096, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    return "wrote code"


def i386_call() -> str:
    """mov $20,%eax (getpid on i386); int $0x80; ret: on x86-64 another table of calls."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    return f"getpid is {function()}"


ATTACKS: dict[str, Callable[[], object]] = {
    **{f"socket {family.name}": lambda family=family: socket.socket(family) for family in socket.AddressFamily},
    "socketpair": socket.socketpair,
    "connect": lambda: syscall("connect", 0, 0, 0),
    "bind": lambda: syscall("bind", 0, 0, 0),
    "execve": lambda: os.execv("/bin/true", ["true"]),
    "execveat": lambda: syscall("execveat", 0, 0, 0, 0, 0),
    "fork": os.fork,
    "vfork": lambda: syscall("vfork"),
    "clone3": lambda: syscall("clone3", 0, 0),
    "kill parent": lambda: os.kill(PARENT, 0),
    "tgkill parent": lambda: syscall("tgkill", PARENT, PARENT, 0),
    "pidfd_open": lambda: os.pidfd_open(PARENT),
    "ptrace": lambda: syscall("ptrace", 16, PARENT, 0, 0),
    "process_vm_readv": lambda: syscall("process_vm_readv", PARENT, 0, 0, 0, 0, 0),
    "mount": lambda: syscall("mount", 0, 0, 0, 0, 0),
    "unshare": lambda: syscall("unshare", 0x10000000),
    "setns": lambda: syscall("setns", 0, 0),
    "chroot": lambda: os.chroot("/"),
    "bpf": lambda: syscall("bpf", 0, 0, 0),
    "perf_event_open": lambda: syscall("perf_event_open", 0, 0, 0, 0, 0),
    "io_uring_setup": lambda: syscall("io_uring_setup", 1, 0),
    "keyctl": lambda: syscall("keyctl", 0, 0),
    "add_key": lambda: syscall("add_key", 0, 0, 0, 0, 0),
    "userfaultfd": lambda: syscall("userfaultfd", 0),
    "setuid": lambda: os.setuid(0),
    "personality": lambda: syscall("personality", 0),
    "undo no_new_privs": lambda: syscall("prctl", 38, 0, 0, 0, 0),
    "dumpable again": lambda: prctl.set_dumpable(1),
    "another seccomp filter": lambda: syscall("seccomp", 1, 0, 0),
    "ioctl TIOCSTI": lambda: syscall("ioctl", 2, 0x5412, 0),
    "ioctl TIOCLINUX": lambda: syscall("ioctl", 2, 0x541C, 0),
    "ioctl of interfaces": lambda: syscall("ioctl", 0, 0x8912, 0),
    "ioctl of KVM": lambda: syscall("ioctl", 0, 0xAE01, 0),
    "ioctl of file flags": lambda: syscall("ioctl", 1, 0x40086602, 0),
    "a file that signals another": lambda: fcntl.fcntl(0, 8, PARENT),
    "by a signal of our choice": lambda: fcntl.fcntl(0, 10, signal.SIGKILL),
    "a lease": lambda: fcntl.fcntl(0, fcntl.F_SETLEASE, fcntl.F_RDLCK),
    "seccomp off": lambda: syscall("prctl", 22, 0, 0, 0, 0),
    "outlive the parent": lambda: syscall("prctl", 1, 0, 0, 0, 0),
    "a tracer of our choice": lambda: syscall("prctl", 0x59616D61, PARENT, 0, 0, 0),
    "ptrace me": lambda: syscall("ptrace", 0, 0, 0, 0),
    "a namespace with a thread": lambda: syscall("clone", 0x10000000, 0, 0, 0, 0),
    "limits of the parent": lambda: syscall("prlimit64", PARENT, 7, 1, 0),
    "own limits": lambda: syscall("prlimit64", 0, 7, 1, 0),
    "own memory as a file": lambda: os.open("/proc/self/mem", os.O_RDWR),
    "run a memfd": lambda: syscall("execveat", 1, 0, 0, 0, 0x1000),
    "read /proc of the first process": lambda: read("/proc/1/cmdline"),
    "list /proc": lambda: os.listdir("/proc"),
    "read the kernel's log": lambda: os.open("/dev/kmsg", os.O_RDONLY),
    "read a disk": lambda: [os.open(f"/dev/{name}", os.O_RDONLY) for name in ("vda", "sda", "mem", "kmem")],
    "list /dev": lambda: os.listdir("/dev"),
    "list the root": lambda: os.listdir("/"),
    "truncate": lambda: os.truncate("/tmp", 0),
    "link": lambda: os.link("/etc/passwd", "/tmp/weave-attack"),
    "mknod": lambda: os.mknod("/tmp/weave-attack"),
    "chown": lambda: os.chown("/tmp", 0, 0),
    "make a folder": lambda: os.mkdir("/tmp/weave-attack"),
    "x32 call": lambda: _libc.syscall(ctypes.c_long(0x40000000 | 39)),
    "chmod": lambda: os.chmod("/tmp", 0o1777),
    "rename": lambda: os.rename("/tmp/a", "/tmp/b"),
    "symlink": lambda: os.symlink("/etc/passwd", "/tmp/weave-attack"),
    "read /etc/passwd": lambda: read("/etc/passwd"),
    "read home": lambda: os.listdir(Path.home()),
    "read /proc of the parent": lambda: read(f"/proc/{PARENT}/status"),
    "read own environment": lambda: read("/proc/self/environ"),
    "list /tmp": lambda: os.listdir("/tmp"),
    "write a file": lambda: open("/tmp/weave-attack", "w"),  # noqa: SIM115
    "write to the model": lambda: open(DEMO_MODEL / "unet" / "config.json", "a"),  # noqa: SIM115
    "i386 call": i386_call,
}


BROKER_ONLY: dict[str, Callable[[], object]] = {
    "mprotect executable": mprotect_executable,
    "mmap executable": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "a memfd that cannot be sealed": lambda: os.memfd_create("x"),
    "a memfd of huge pages": lambda: os.memfd_create("x", SEALABLE | os.MFD_HUGETLB),
    "a memfd that can be executed": lambda: os.memfd_create("x", SEALABLE | 0x10),
    "a memfd that stays after exec": lambda: os.memfd_create("x", os.MFD_ALLOW_SEALING),
    "seals that are not all": lambda: fcntl.fcntl(2, fcntl.F_ADD_SEALS, ALL_SEALS & ~fcntl.F_SEAL_WRITE),
    "change a sealed memfd": lambda: os.pwrite(sealed(), b"x", 0),
    "let a sealed memfd grow": lambda: os.pwrite(sealed(), b"x", 8),
    "shorten a memfd": lambda: os.ftruncate(os.memfd_create("x", SEALABLE), 1),
    "map a memfd": lambda: mmap.mmap(os.memfd_create("x", SEALABLE), 4096),
    "pwritev": lambda: os.pwritev(2, [b"x"], 0),
    "stat": lambda: os.stat("/etc/passwd"),
}


# The filter allows these calls for memfds, the only files with offsets that the broker has.
AT_AN_OFFSET: dict[str, Callable[[], object]] = {
    "write to a socket at an offset": lambda: os.pwrite(0, b"x", 0),
    "write to the log at an offset": lambda: os.pwrite(2, b"x", 0),
}


def sealed() -> int:
    """A memfd as weave/protocol/channel.py makes it."""
    writer = MemfdWriter("x")
    writer.write(memoryview(b"12345678"))
    return writer.seal()


def take_away(layer: str | None) -> None:
    """Replace the one function of a layer by nothing."""
    if layer == "landlock":
        landlock.restrict = lambda **_: "landlock-0"
    elif layer == "capabilities":
        hardening.drop_capabilities = lambda: "no-capabilities"
    elif layer == "seccomp":
        # A listener must be sent all the same: it watches a call that no process makes.
        original = seccomp.install

        def install(_: object) -> int:
            import pyseccomp

            seccomp.pyseccomp.NOTIFY, kept = pyseccomp.ALLOW, pyseccomp.NOTIFY
            seccomp.pyseccomp.ALLOW, allow = kept, pyseccomp.ALLOW
            try:
                return original([seccomp.Call("uselib", "never called")])
            finally:
                seccomp.pyseccomp.NOTIFY, seccomp.pyseccomp.ALLOW = kept, allow

        seccomp.install = install


def let_through(name: str) -> None:
    """With any arguments."""
    original = seccomp.install

    def install(calls: Iterable[seccomp.Call | seccomp.Refusal]) -> int:
        return original([*(call for call in calls if call.name != name), seccomp.Call(name, "")])

    seccomp.install = install


def lock_down_as_broker(control: int) -> None:
    """weave/broker/__main__.py, from its first line to lock_down()."""
    from weave.broker import __main__ as broker

    broker.drop_capabilities = hardening.drop_capabilities  # type: ignore[attr-defined]
    hardening.harden(parent=os.getppid())
    broker.lock_down(Channel.from_fd(control, None))


def lock_down_as_worker_with_a_gpu(control: int) -> None:
    """A worker with a GPU. /dev/null stands in for it, as there is no driver here."""
    worker_files.NVIDIA = (Path("/dev/null"),)
    lock_down_as_worker(control, gpu=True)


def lock_down_as_worker(control: int, *, gpu: bool, device: str = "cpu") -> None:
    """weave/gpu_worker/worker.py, from its first line to lock_down()."""
    import torch

    from weave.config.schema import Config, DeviceConfig, ModelConfig
    from weave.config.split import worker_config
    from weave.gpu_worker import worker

    worker.drop_capabilities = hardening.drop_capabilities  # type: ignore[attr-defined]
    worker.close_descriptors_except(control)
    hardening.harden(parent=os.getppid())
    config = Config(models={"shapes": ModelConfig(path=str(DEMO_MODEL), family="sd1")})  # a build has no demo model
    layers = worker.confine(worker_config(config).models[0])
    warm = worker.warm_up(DeviceConfig(device=device), device)
    worker.lock_down(control, layers, torch.device("cuda") if gpu else warm)


WORKERS: dict[str, Callable[[int], None]] = {
    "worker": partial(lock_down_as_worker, gpu=False),
    "worker-with-a-gpu": lock_down_as_worker_with_a_gpu,
    "worker-on-cuda": partial(lock_down_as_worker, gpu=True, device="cuda"),
}


def run(attack: Callable[[], object], lock_down: Callable[[int], None]) -> dict[str, object]:
    """One attack, in its own process."""
    ours, theirs = socket_pair()
    reading, writing = os.pipe()
    starter, start = socket_pair()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, 2)
        os.dup2(start.fileno(), 0)  # close_descriptors_except leaves the standard streams
        started = socket.socket(fileno=0)
        lock_down(theirs.fileno())
        started.recvmsg(1, 0, socket.MSG_CMSG_CLOEXEC)
        try:
            result = f"gained: {attack()!r}"
        except OSError as error:
            result = f"refused: {errno.errorcode.get(error.errno or 0)}"
        os.write(2, result.encode()[:500])
        os._exit(0)
    theirs.close()
    start.close()
    os.close(writing)
    supervisor: Channel[LockedDown] = Channel(ours, FromWorkerStart)
    try:
        message, (listener,) = supervisor.receive()
    except ChannelClosed:
        raise SystemExit(f"it did not lock itself down: {os.read(reading, 10_000).decode()}") from None
    supervisor.close()
    outcome: dict[str, object] = {"layers": message.layers}
    try:
        demanded = attestation.Confinement("worker", Account.own(), os.geteuid() == 0, None)
        attestation.attest(pid, demanded, parent=os.getpid())
    except attestation.AttestationFailed as error:
        outcome["attestation"] = str(error)
    with starter:
        starter.send(b"!")  # a process that has died of its attack could not be attested
    told, violation = b"", None
    # Its result comes last, after any warnings of a library.
    while not told.rpartition(b"\n")[2].startswith((b"gained: ", b"refused: ")):
        ready, _, _ = select.select([listener, reading], [], [], 60)
        violation = seccomp.receive_violation(listener) if listener in ready else None
        if violation is not None:
            outcome["violation"] = violation.call
            os.kill(pid, signal.SIGKILL)
            break
        more = os.read(reading, 65536) if reading in ready else b""
        if not more:
            break
        told += more
    outcome["result"] = told.rpartition(b"\n")[2].decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0 and violation is None:
        outcome["violation"] = signal.Signals(-status).name
    os.close(reading)
    os.close(listener)
    return outcome


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("role", choices=("broker", *WORKERS))
    options.add_argument("--without", choices=("landlock", "capabilities", "seccomp"))
    options.add_argument("--only", nargs="*")
    options.add_argument("--sweep", choices=("calls", "arguments"))
    options.add_argument("--as-if-not-on-the-list")
    options.add_argument("--let-through")
    chosen = options.parse_args()
    take_away(chosen.without)
    if chosen.let_through is not None:
        let_through(chosen.let_through)
    attacks, lock_down, calls = {**ATTACKS, **BROKER_ONLY, **AT_AN_OFFSET}, lock_down_as_broker, broker_calls.CALLS
    if chosen.role != "broker":
        # As in the zygote: everything is imported before the fork.
        from weave.gpu_worker import environment

        environment.apply()
        if chosen.role == "worker-on-cuda":
            os.environ["CUDA_MODULE_LOADING"] = "LAZY"  # each attack starts CUDA, and should do no more
        import weave.gpu_worker.worker

        assert weave.gpu_worker.worker
        lock_down, calls = WORKERS[chosen.role], worker_calls.calls(0, gpu=chosen.role != "worker")
        attacks = {**ATTACKS, **WORKER_ONLY, **(DRIVER if chosen.role == "worker-on-cuda" else {})}
    if chosen.sweep == "arguments":
        print(json.dumps({"attack": "sweep", **sweeps.arguments_that_pass(calls, lock_down)}))
        return
    if chosen.sweep == "calls":
        listed = [call for call in calls if call.name != chosen.as_if_not_on_the_list]
        print(json.dumps({"attack": "sweep", **sweeps.calls_that_are_not_listed(listed, lock_down)}))
        return
    for name, attack in attacks.items():
        if chosen.only is None or name in chosen.only:
            print(json.dumps({"attack": name, **run(attack, lock_down)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
