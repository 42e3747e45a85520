"""A GPU worker's life: one model, from fork to end.

    only its own two channels → files and capabilities given up → device warm → lock_down() → load → serve

Everything privileged is above lock_down(). The model's files are as little trusted as a client's prompt, so they
are read below it. In record mode alone the filter is there from start_recording() on, and the supervisor, which answers
what the filter asks, is what changes at lock_down().
"""

import os
import traceback
from typing import NoReturn

import prctl
import torch

from weave import log
from weave.config.child_configs import WorkerModel
from weave.config.schema import DeviceConfig
from weave.gpu_worker import device as devices
from weave.gpu_worker.serve import serve
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
from weave.protocol.control_messages import LockedDown, Recording
from weave.protocol.worker_messages import ToWorker
from weave.sandbox import landlock, seccomp, worker_calls, worker_files
from weave.sandbox.hardening import drop_capabilities, harden


def run_worker(
    model: WorkerModel, config: DeviceConfig, *, jobs: int, control: int, parent: int, record: bool
) -> NoReturn:
    """What the forked child does, and all that it does. Never returns into the zygote's code."""
    status = 1
    try:
        keep_only(jobs, control)
        harden(parent=parent)
        layers = start_recording(control) if record else confine(model)
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
    layer = landlock.restrict(**worker_files.rules(os.getpid(), model.path, model.layout)._asdict())
    return (layer, drop_capabilities())


def start_recording(control: int) -> tuple[str, ...]:
    """In the place of confine(): the supervisor hears of each file that is opened from here on. It reads the names in
    our memory, so that must be dumpable. A process has one listener at most, so this filter stays."""
    prctl.set_dumpable(1)
    layers = (landlock.restrict_all_but_opening(), drop_capabilities(), "seccomp-recording")
    supervisor: Channel[None] = Channel.from_fd(os.dup(control), None)
    listener = seccomp.install(worker_calls.recording(os.getpid()))
    supervisor.send(Recording(), (listener,))
    close_all([listener])
    supervisor.close()
    return layers


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
    listeners = []
    if not record:  # else there is a filter already
        listeners = [seccomp.install(worker_calls.calls(os.getpid(), gpu=device.type == "cuda"))]
        layers = (*layers, "seccomp")
    supervisor.send(LockedDown(layers=(*layers, "no-new-privs")), tuple(listeners))
    close_all(listeners)
    supervisor.close()
