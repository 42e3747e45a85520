"""A GPU worker's life: one model, from fork to end.

    only its own two channels → files and capabilities given up → device warm → lock_down() → load → serve

Everything privileged is above lock_down(). The model's files are as little trusted as a client's prompt, so they
are read below it.
"""

import os
import traceback
from pathlib import Path
from typing import NoReturn

import torch

from weave import log
from weave.config.parts import WorkerModel
from weave.config.schema import DeviceConfig
from weave.gpu_worker import device as devices
from weave.gpu_worker.serve import serve
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
from weave.protocol.control_messages import LockedDown
from weave.protocol.worker_messages import ToWorker
from weave.sandbox import landlock, seccomp, worker_calls, worker_files
from weave.sandbox.process import drop_capabilities, harden


def run_worker(
    model: WorkerModel, config: DeviceConfig, *, jobs: int, control: int, parent: int, record: bool
) -> NoReturn:
    """What the forked child does, and all that it does. Never returns into the zygote's code."""
    status = 1
    try:
        keep_only(jobs, control)
        harden(parent=parent)
        layers = confine(model)
        device = warm_up(config)
        channel: Channel[ToWorker] = Channel.from_fd(jobs, ToWorker)
        lock_down(control, layers, device, record=record)
        serve(channel, model, device, devices.choose_dtype(device, config.dtype))
    except ChannelClosed:
        status = 0
    except ChannelViolation as error:
        log.write("worker", "protocol_violation", detail=str(error))
    except BaseException:
        log.write("worker", "crashed", detail=traceback.format_exc()[-4000:])
    finally:
        # Not sys.exit: the zygote's stack is above us, and torch's threads would be waited for.
        os._exit(status)


def keep_only(*descriptors: int) -> None:
    """Close everything inherited but the standard streams and these: above all the zygote's own channel."""
    first = 3
    for kept in sorted(descriptors):
        os.closerange(first, kept)
        first = kept + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def confine(model: WorkerModel) -> tuple[str, ...]:
    """Landlock and capabilities bind one thread and what it starts, so this comes while there is just one."""
    models = [Path(path) for path in (model.path, model.layout) if path is not None]
    read = [*worker_files.READ, *worker_files.cards(), *models]
    own = Path(f"/proc/{os.getpid()}")
    read += [own / name for name in ("maps", "stat", "status")]
    # CUDA names its threads, by opening task/TID/comm for reading and writing; the TIDs are not known yet.
    threads = [own / "task"] if worker_files.NVIDIA else []
    layer = landlock.restrict(read=read, read_write=worker_files.DEVICES, unlisted=threads)
    return (layer, drop_capabilities())


def warm_up(config: DeviceConfig) -> torch.device:
    """Load the device's libraries, open its files and start its threads, which lock_down makes impossible."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = devices.choose_device(config.device)
    if device.type == "cpu" and config.device == "auto" and worker_files.NVIDIA:
        log.write("worker", "gpu_not_used", reason=devices.why_no_gpu())
    devices.warm_up(device)
    return device


def lock_down(control: int, layers: tuple[str, ...], device: torch.device, *, record: bool = False) -> None:
    """Bind every thread to the allow list, and tell the supervisor. After this line nothing is privileged."""
    supervisor: Channel[None] = Channel.from_fd(control, None)
    calls = worker_calls.recording if record else worker_calls.calls
    listener = seccomp.install(calls(os.getpid(), gpu=device.type == "cuda"))
    layer = "seccomp-recording" if record else "seccomp"
    supervisor.send(LockedDown(layers=(*layers, layer, "no-new-privs")), (listener,))
    close_all([listener])
    supervisor.close()
