"""python -m weave.gpu_worker: the zygote.

It imports torch and diffusers once, and forks a worker for each request of the supervisor. It computes nothing and
never touches torch.cuda: a child forked from a process that has initialised CUDA cannot use CUDA.
"""

import argparse
import contextlib
import gc
import os
import selectors
import time
from collections.abc import Iterable
from typing import NamedTuple

from weave import log
from weave.config.child_configs import WorkerConfig, from_memfd
from weave.config.devices import device_names
from weave.gpu_worker import environment, libraries
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
from weave.protocol.control_messages import Exited, Forked, ForkWorker, Imported, LibrariesLack, ToZygote
from weave.sandbox.hardening import drop_capabilities, harden

# A zygote that has run this long exits after a worker of an unsupported family, so that the next one checks again.
_RECHECK_SECONDS = 60.0


def main() -> None:
    """Serve the supervisor until it disconnects."""
    options = argparse.ArgumentParser()
    for name in ("parent", "control", "config"):
        options.add_argument(f"--{name}", type=int, required=True)
    inherited = options.parse_args()
    harden(parent=inherited.parent)
    drop_capabilities()
    config = from_memfd(inherited.config, WorkerConfig)
    control: Channel[ToZygote] = Channel.from_fd(inherited.control, ToZygote)

    environment.apply()
    started = time.monotonic()
    zygote = Zygote(control, config)
    with contextlib.suppress(ChannelClosed):
        if not zygote.import_libraries():
            control.send(LibrariesLack())
            control.receive()  # blocks until the supervisor disconnects or kills this process
            return
        log.write("zygote", "imported", seconds=round(time.monotonic() - started, 2))
        control.send(Imported())
        zygote.serve()


class _Worker(NamedTuple):
    """A running worker. `number` is the broker's; `supported` is whether the libraries can run its model's family."""

    number: int
    pid: int
    supported: bool


class Zygote:
    """Forks workers, and reports their exit.

    `_tasks` are those that the libraries can run, by family: a worker refuses other tasks, and models of a family
    without any. `_unfit` are the families that lack some. `_leaving`: exit as soon as no worker runs, so that a new
    zygote checks the libraries again.
    """

    def __init__(self, control: Channel[ToZygote], config: WorkerConfig) -> None:
        self._control = control
        self._config = config
        self._tasks: dict[str, frozenset[str]] = {}
        self._unfit: set[str] = set()
        self._started = time.monotonic()
        self._leaving = False
        self._workers: dict[int, _Worker] = {}  # by pidfd
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def import_libraries(self) -> bool:
        """Import what the config's models need. Whether at least one of them can run; logs what is missing."""
        gc.disable()  # hardly anything that imports create is garbage
        try:
            return self._import_libraries()
        finally:
            gc.freeze()  # a worker that looked for garbage in it would copy its pages
            gc.enable()

    def _import_libraries(self) -> bool:
        if lacking := libraries.lacking_for_all():
            _log_lacking(lacking)
            return False
        families = {model.offer.family for model in self._config.models}
        self._import_families(families)
        return not families or any(self._tasks.values())

    def _import_families(self, families: Iterable[str]) -> None:
        self._tasks, self._unfit = {}, set()
        for family in sorted(families):
            tasks = set()
            for task, lacking in libraries.lacking_for(family):
                if lacking:
                    _log_lacking(lacking, family=family, task=task)
                    self._unfit.add(family)
                else:
                    tasks.add(task)
            self._tasks[family] = frozenset(tasks)
            if tasks:
                from weave.gpu_worker.classes import import_family

                import_family(family, tasks)

    def serve(self) -> None:
        """Returns when another zygote should check the libraries again. Raises ChannelClosed when the supervisor
        disconnects."""
        while self._workers or not self._leaving:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    self._handle(*self._control.receive())
                else:
                    self._reap(key.fd)

    def _handle(self, message: ToZygote, descriptors: list[int]) -> None:
        if isinstance(message, ForkWorker):
            if len(descriptors) != 2:
                raise ChannelViolation("a worker needs two channels")
            self._fork(message, descriptors[0], descriptors[1])
        else:
            self._config = from_memfd(descriptors[0], WorkerConfig)
            self._import_families({model.offer.family for model in self._config.models})
            self._leaving = bool(self._unfit)

    def _fork(self, message: ForkWorker, jobs: int, control: int) -> None:
        model = next((model for model in self._config.models if model.offer.id == message.model), None)
        if model is None or message.device not in device_names(self._config.device):
            raise ChannelViolation("a worker for a model or a device that is not in the config")
        tasks = self._tasks[model.offer.family]
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            from weave.gpu_worker.worker import run_worker

            run_worker(
                model,
                self._config.device,
                message.device,
                tasks=tasks,
                jobs=jobs,
                control=control,
                parent=zygote,
                record=message.record,
            )
        close_all([jobs, control])
        pidfd = os.pidfd_open(pid)  # the PID cannot be reused: the child has not been reaped
        self._control.send(Forked(worker=message.worker, pid=pid), (pidfd,))
        self._workers[pidfd] = _Worker(message.worker, pid, bool(tasks))
        self._selector.register(pidfd, selectors.EVENT_READ)

    def _reap(self, pidfd: int) -> None:
        worker = self._workers.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(worker.pid, 0)
        self._control.send(Exited(worker=worker.number, pid=worker.pid, status=os.waitstatus_to_exitcode(status)))
        if not worker.supported and time.monotonic() - self._started > _RECHECK_SECONDS:
            self._leaving = True


def _log_lacking(found: Iterable[libraries.Lacking], **more: str) -> None:
    for lacking in found:
        log.write("zygote", "libraries_lack", **lacking._asdict(), **more)


if __name__ == "__main__":
    main()
