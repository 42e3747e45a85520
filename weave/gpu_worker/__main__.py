"""python -m weave.gpu_worker: the zygote.

It imports torch and diffusers once, computes nothing, never touches torch.cuda (a child forked from a process that
has initialised CUDA cannot use it), and forks a fresh worker for each model that is asked for.
"""

import argparse
import contextlib
import os
import selectors
import time

from weave import log
from weave.config.child_configs import WorkerConfig, from_memfd
from weave.gpu_worker import environment, libraries
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
from weave.protocol.control_messages import Exited, Forked, ForkWorker, Imported, LibrariesLack, ToZygote
from weave.sandbox.hardening import drop_capabilities, harden


def main() -> None:
    """Serve the supervisor until it is gone."""
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
    with contextlib.suppress(ChannelClosed):
        if not import_libraries(config):
            control.send(LibrariesLack())
            control.receive()  # nothing comes: until the supervisor is gone, or ends us
            return
        log.write("zygote", "imported", seconds=round(time.monotonic() - started, 2))
        control.send(Imported())
        Zygote(control, config).serve()


def import_libraries(config: WorkerConfig) -> bool:
    """Whether they have all that the config's models need. What they lack is logged."""
    families = {model.offer.family for model in config.models}
    found = libraries.lacking(families)
    for lacking in found:
        log.write("zygote", "libraries_lack", **lacking._asdict())
    if found:
        return False
    from weave.gpu_worker.classes import import_families

    import_families(families)
    return True


class Zygote:
    """The loop: fork when asked, tell when a worker is gone."""

    def __init__(self, control: Channel[ToZygote], config: WorkerConfig) -> None:
        self._control = control
        self._config = config
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def serve(self) -> None:
        """Raises ChannelClosed when the supervisor is gone."""
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._handle(*self._control.receive())
                else:
                    self._reap(key.fd, key.data)

    def _handle(self, message: ToZygote, descriptors: list[int]) -> None:
        if isinstance(message, ForkWorker):
            if len(descriptors) != 2:
                raise ChannelViolation("a worker needs two channels")
            self._fork(message, descriptors[0], descriptors[1])
        else:
            self._config = from_memfd(descriptors[0], WorkerConfig)
            from weave.gpu_worker.classes import import_families

            import_families({model.offer.family for model in self._config.models})

    def _fork(self, message: ForkWorker, jobs: int, control: int) -> None:
        model = next(model for model in self._config.models if model.offer.id == message.model)
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            from weave.gpu_worker.worker import run_worker

            device = self._config.device
            run_worker(model, device, jobs=jobs, control=control, parent=zygote, record=message.record)
        close_all([jobs, control])
        pidfd = os.pidfd_open(pid)  # our own child, not yet reaped: the PID cannot be another's
        self._control.send(Forked(worker=message.worker, pid=pid), (pidfd,))
        self._selector.register(pidfd, selectors.EVENT_READ, (message.worker, pid))

    def _reap(self, pidfd: int, forked: tuple[int, int]) -> None:
        worker, pid = forked
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._control.send(Exited(worker=worker, pid=pid, status=os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main()
