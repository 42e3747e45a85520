"""A process started by the supervisor: its channel, its pidfd, its end."""

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any, Generic, TypeVar

from msgspec import Struct

from weave.protocol.channel import Channel, ChannelClosed, close_all, socket_pair
from weave.protocol.waiting import readable
from weave.sandbox.attestation import Confinement
from weave.sandbox.process import Account
from weave.supervisor.relay import relay, stderr_pipe

Incoming = TypeVar("Incoming")

# All that a child inherits of the environment: who is who, where the libraries are, and which GPU.
_ENVIRONMENT = (
    "PATH",
    "LANG",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
)

_LAST_WORDS_SECONDS = 1.0


class Child(Generic[Incoming]):
    """One running child. Its module is started in an interpreter of its own (`-I`: nothing from the environment
    or the current folder), so it shares no memory with us or its siblings."""

    def __init__(
        self,
        module: str,
        incoming: Any,
        descriptors: dict[str, int],
        confinement: Confinement,
        *,
        audited: bool,
    ) -> None:
        """`descriptors` are inherited, and named to the child in options; they stay open here.
        `confinement` is what it becomes before it runs anything."""
        ours, theirs = socket_pair()
        self._log, log_end = stderr_pipe()
        passed = {"control": theirs.fileno(), **descriptors}
        options = [f"--{name}={descriptor}" for name, descriptor in passed.items()]
        # Without a home of its own Python looks for one in /etc/passwd, which is none of a child's business.
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
        """A child that does not read its channel is killed. One that has closed it is ending, as our reading finds too:
        left alone, its exit status tells why."""
        try:
            self.channel.send(message, descriptors)
        except ChannelClosed:
            pass
        except BlockingIOError:
            self.kill()

    def kill(self) -> None:
        """SIGKILL through the pidfd: never another process that got the same PID."""
        kill(self.pidfd)

    async def ended(self) -> int:
        """Wait for the end; the exit status, or minus the number of the signal."""
        await readable(self.pidfd)
        # Its last words, unless something that it started holds the other end.
        await asyncio.wait([self._relaying], timeout=_LAST_WORDS_SECONDS)
        self._relaying.cancel()
        await asyncio.gather(self._relaying, return_exceptions=True)
        return self._process.wait()

    def close(self) -> None:
        """Let go of what has ended."""
        self.channel.close()
        close_all([self.pidfd, self._log])


def kill(pidfd: int) -> None:
    """SIGKILL, unless the process has ended already."""
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
