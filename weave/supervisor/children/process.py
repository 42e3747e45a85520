"""A process that the supervisor has started: its channel, its pidfd, its exit status."""

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any, Generic, TypeVar

from msgspec import Struct

from weave.protocol.channel import Channel, ChannelClosed, close_all, socket_pair
from weave.protocol.waiting import readable
from weave.sandbox.account import Account
from weave.sandbox.attestation import Confinement
from weave.supervisor.children.stderr_relay import relay, stderr_pipe

Incoming = TypeVar("Incoming")

# All that a child inherits of the environment.
_ENVIRONMENT = (
    "PATH",
    "LANG",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
)

_LAST_LINES_SECONDS = 1.0


class ChildProcess(Generic[Incoming]):
    """Owns the child's pidfd, its channel and the pipe of its standard error. The child's module runs in a new
    interpreter (`-I`: nothing from the environment or the current folder), so it shares no memory with us."""

    def __init__(
        self,
        module: str,
        incoming: Any,
        descriptors: dict[str, int],
        confinement: Confinement,
        *,
        audited: bool,
    ) -> None:
        """The child inherits `descriptors`, and gets their numbers as options; they stay open here. It has the account
        and the label of `confinement` before it runs any code of ours. `audited`: its log lines may go to the audit."""
        ours, theirs = socket_pair()
        self._log, log_end = stderr_pipe()
        passed = {"control": theirs.fileno(), **descriptors}
        options = [f"--{name}={descriptor}" for name, descriptor in passed.items()]
        # Without HOME Python would read /etc/passwd.
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"HOME": "/nonexistent"}
        account, mac = confinement.account, confinement.mac
        user: dict[str, Any] = {}
        if account != Account.own():
            user = {"user": account.uid, "group": account.gid, "extra_groups": account.groups}
        try:
            if mac is not None:
                mac.at_next_exec(confinement.role)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-m", module, f"--parent={os.getpid()}", *options],
                pass_fds=tuple(passed.values()),
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log_end,
                **user,
            )
        finally:
            theirs.close()
            os.close(log_end)
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.channel: Channel[Incoming] = Channel(ours, incoming)
        self.channel.set_blocking(False)
        self._relaying = asyncio.create_task(relay(module.removeprefix("weave."), self._log, audited=audited))

    def send(self, message: Struct, descriptors: tuple[int, ...] = ()) -> None:
        """Kills a child that does not read its channel. One that has closed it is exiting, which our reader finds too:
        left alone, its exit status gives the cause."""
        try:
            self.channel.send(message, descriptors)
        except ChannelClosed:
            pass
        except BlockingIOError:
            self.kill()

    def kill(self) -> None:
        """SIGKILL through the pidfd: never to another process with the same PID."""
        kill(self.pidfd)

    async def exited(self) -> int:
        """Wait for it to exit, and reap it. Returns the exit status, or the negative number of the signal."""
        await readable(self.pidfd)
        # For its last lines; with a timeout, since a process that it started may hold the other end.
        await asyncio.wait([self._relaying], timeout=_LAST_LINES_SECONDS)
        self._relaying.cancel()
        await asyncio.gather(self._relaying, return_exceptions=True)
        return self._process.wait()

    def close(self) -> None:
        """After it has exited."""
        self.channel.close()
        close_all([self.pidfd, self._log])


def kill(pidfd: int) -> None:
    """SIGKILL, unless the process has already exited."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
