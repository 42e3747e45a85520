"""Keeps one zygote running, which forks workers, until no worker has been needed for a while. A replaced zygote lives
until its last worker has ended."""

import asyncio

from weave import log
from weave.config.schema import Config
from weave.config.split import worker_config
from weave.sandbox.attestation import Confinement
from weave.supervisor.children.restart import keep_running
from weave.supervisor.children.zygote import ZygoteProcess


class Zygotes:
    """At most one more than there are devices: each replaced zygote has a running worker."""

    def __init__(self, config: Config, confinement: Confinement) -> None:
        self.config = config
        self._confinement = confinement
        self._current: ZygoteProcess | None = None
        self._is_there = asyncio.Event()
        # Cleared when an idle zygote is ended: the next request for a worker starts another.
        self._is_wanted = asyncio.Event()
        self._is_wanted.set()
        self._ended_idle = False
        self._running: set[asyncio.Task[str]] = set()

    @property
    def is_unfit(self) -> bool:
        """Whether no worker can be forked, because the libraries lack something."""
        return self._current is not None and self._current.is_unfit

    async def run(self, stopping: asyncio.Event) -> None:
        """Runs until `stopping`, or until cancelled; then all zygotes have exited."""
        try:
            await keep_running("zygote", self._run_until_one_ends, stopping)
        finally:
            for running in self._running:
                running.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def current(self) -> ZygoteProcess:
        """Waits for it if there is none. The caller must hold it for a worker before it awaits anything else."""
        self._is_wanted.set()
        while self._current is None or self._current.has_ended:
            # What waited for one that has ended may be here before _run_one().
            await (self._is_there.wait() if self._current is None else asyncio.sleep(0))
        return self._current

    def reconfigure(self, config: Config) -> None:
        """The new config is for the next worker."""
        self.config = config
        if self._current is not None:
            self._current.reconfigure(worker_config(config))

    def replace_if_unfit_for_long(self) -> None:
        """The next zygote checks the libraries again."""
        if self._current is not None:
            self._current.replace_if_unfit_for_long()

    def end_if_idle(self) -> None:
        """End a zygote that no worker has needed for `idle_zygote_seconds`. The next request for a worker waits for a
        new one."""
        zygote, seconds = self._current, self.config.limits.idle_zygote_seconds
        if zygote is None or not seconds or zygote.idle_seconds < seconds:
            return
        self._is_wanted.clear()
        self._ended_idle = True
        self._current = None
        self._is_there.clear()
        log.write("supervisor", "zygote_idle", zygote=zygote.pid, seconds=seconds)
        zygote.retire_idle()

    async def _run_until_one_ends(self) -> str:
        """Runs zygotes until one ends for a reason other than being idle. Returns the cause."""
        while True:
            await self._is_wanted.wait()
            self._ended_idle = False
            cause = await self._run_one()
            if not self._ended_idle:
                return cause

    async def _run_one(self) -> str:
        """From exec until it has exited or was retired. Returns the cause."""
        zygote = ZygoteProcess(worker_config(self.config), self._confinement)
        running = asyncio.create_task(zygote.run())
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        retired = asyncio.create_task(zygote.retired.wait())
        self._current = zygote
        self._is_there.set()
        try:
            await asyncio.wait([running, retired], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._current = None
            self._is_there.clear()
            retired.cancel()
        if running.done() or zygote.is_idle:
            return await running
        return "retired; it exits after its last worker"
