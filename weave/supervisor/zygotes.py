"""Keeps one zygote running that forks workers. One that was replaced lives on until its last worker has ended."""

import asyncio

from weave.config.schema import Config
from weave.config.split import worker_config
from weave.sandbox.attestation import Confinement
from weave.supervisor.children.restart import keep_running
from weave.supervisor.children.zygote import ZygoteProcess


class Zygotes:
    """There are at most as many as devices, and one: each replaced one has a worker that runs."""

    def __init__(self, config: Config, confinement: Confinement) -> None:
        self.config = config
        self._confinement = confinement
        self._current: ZygoteProcess | None = None
        self._is_there = asyncio.Event()
        self._running: set[asyncio.Task[str]] = set()

    @property
    def is_unfit(self) -> bool:
        """Whether no worker can be forked, because the libraries lack something."""
        return self._current is not None and self._current.is_unfit

    async def run(self, stopping: asyncio.Event) -> None:
        """Runs until `stopping`, or until cancelled; then all zygotes have exited."""
        try:
            await keep_running("zygote", self._run_one, stopping)
        finally:
            for running in self._running:
                running.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def current(self) -> ZygoteProcess:
        """Waits for it if there is none."""
        while self._current is None:
            await self._is_there.wait()
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
