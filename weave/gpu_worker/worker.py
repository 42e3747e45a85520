"""A GPU worker: one process with one model, from fork to exit.

    keep two descriptors → confine() → warm_up() → lock_down() → load → serve

Everything privileged happens above lock_down(). The model's files are trusted no more than a client's prompt, so they
are read below it. In record mode only, start_recording() replaces confine() and installs the seccomp filter; the
supervisor, which answers the filter's notifications, then judges calls by the worker's list from lock_down() on.
"""

import contextlib
import os
import traceback
from typing import NoReturn

import prctl
import torch

from weave import log
from weave.config.child_configs import WorkerModel
from weave.config.devices import device_names, is_cpu
from weave.config.schema import DeviceConfig
from weave.gpu_worker import device as devices
from weave.gpu_worker.planner import Planner
from weave.gpu_worker.serve import serve
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
from weave.protocol.control_messages import DeviceFailed, LockedDown, Recording
from weave.protocol.inputs import MAX_INPUTS
from weave.protocol.worker_messages import ToWorker
from weave.sandbox import landlock, seccomp, worker_calls, worker_files
from weave.sandbox.hardening import drop_capabilities, harden
from weave.sandbox.nvidia import Card, card_of, near_processors


def run_worker(
    model: WorkerModel,
    config: DeviceConfig,
    name: str,
    *,
    tasks: frozenset[str],
    jobs: int,
    control: int,
    parent: int,
    record: bool,
) -> NoReturn:
    """The forked child's whole life. Takes ownership of the descriptors: `jobs` leads to the broker, `control` to the
    supervisor. `name` is the device's in the config, and `tasks` are those that the libraries can run for the model's
    family. Never returns into the zygote's code.
    """
    status = 1
    try:
        close_descriptors_except(jobs, control)
        harden(parent=parent)
        card = bind_to_card(name)
        layers = start_recording(control) if record else confine(model, card)
        try:
            device = warm_up(config, name, bound=card is not None)
        except Exception as error:
            report_failure(control, name, error)
            raise ChannelClosed from error
        channel: Channel[ToWorker] = Channel.from_fd(jobs, ToWorker, descriptors=MAX_INPUTS)

        # Privileged above this line, locked in below it.
        lock_down(control, layers, device, record=record)

        dtype = devices.choose_dtype(device, config.dtype)
        serve(channel, model, Planner(model, device, dtype, config.memory_bytes), dtype, tasks=tasks)
    except ChannelClosed:
        status = 0
    except ChannelViolation as error:
        log.write("worker", "protocol_violation", detail=str(error))
    except BaseException:
        log.write("worker", "crashed", detail=traceback.format_exc()[-4000:])
    finally:
        # Not sys.exit: it would unwind into the zygote's stack, and wait for torch's threads.
        os._exit(status)


def close_descriptors_except(*kept: int) -> None:
    """Close what the zygote left open, above all its own channel. The standard streams stay open."""
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def bind_to_card(name: str) -> Card | None:
    """Have CUDA see only the card of the device `name`, and run all threads near it. Returns the card; None if it is
    not known which one that is. CUDA reads the variables when it starts."""
    card = card_of(name)
    if card is not None:
        # Landlock hides the other cards, so without its UUID it is CUDA's first one.
        os.environ.update(CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_VISIBLE_DEVICES=card.uuid or "0")
        if near := near_processors(card) & os.sched_getaffinity(0):
            os.sched_setaffinity(0, near)
    elif not is_cpu(name) and worker_files.NVIDIA:
        log.write("worker", "card_unknown", device=name)
    return card


def confine(model: WorkerModel, card: Card | None = None) -> tuple[str, ...]:
    """Landlock and capabilities bind the calling thread and those that it starts, so this comes before warm_up()."""
    layer = landlock.restrict(**worker_files.rules(os.getpid(), *model.paths(), card=card)._asdict())
    return (layer, drop_capabilities())


def start_recording(control: int) -> tuple[str, ...]:
    """Replaces confine() in record mode: every file that is opened from here on is reported to the supervisor.

    The supervisor reads the file names in this process's memory, so the process must be dumpable. A process can have
    one seccomp listener only, so this filter stays in place at lock_down().
    """
    prctl.set_dumpable(1)
    layers = (landlock.restrict_all_but_opening(), drop_capabilities(), "seccomp-recording")
    supervisor: Channel[None] = Channel.from_fd(os.dup(control), None)
    listener = seccomp.install(worker_calls.recording(os.getpid()))
    supervisor.send(Recording(), (listener,))
    close_all([listener])
    supervisor.close()
    return layers


def warm_up(config: DeviceConfig, name: str, *, bound: bool = False) -> torch.device:
    """Load the device's libraries, open its files and start its threads: lock_down() forbids all of these. `bound`:
    CUDA sees only this device, and so numbers it 0."""
    threads = config.threads or devices.share_of_threads(name, device_names(config))
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    device = devices.choose_device("cpu" if is_cpu(name) else "cuda" if bound else name)
    if device.type == "cpu" and name == "auto" and worker_files.NVIDIA:
        log.write("worker", "gpu_not_used", reason=devices.why_no_gpu())
    devices.warm_up(device)
    devices.limit(device, config.memory_bytes)
    return device


def report_failure(control: int, name: str, error: Exception) -> None:
    """Report to the supervisor that the device did not start. Closes `control`."""
    log.write("worker", "device_failed", device=name, detail=f"{type(error).__name__}: {error}"[:4000])
    gpus = 0
    with contextlib.suppress(Exception):
        gpus = min(torch.cuda.device_count(), 1024)
    supervisor: Channel[None] = Channel.from_fd(control, None)
    supervisor.send(DeviceFailed(gpus=gpus))
    supervisor.close()


def lock_down(control: int, layers: tuple[str, ...], device: torch.device, *, record: bool = False) -> None:
    """Bind every thread to the list of allowed calls, and report that to the supervisor. Closes `control`."""
    supervisor: Channel[None] = Channel.from_fd(control, None)
    listeners = []
    if not record:  # start_recording() has installed the filter
        listeners = [seccomp.install(worker_calls.calls(os.getpid(), gpu=device.type == "cuda"))]
        layers = (*layers, "seccomp")
    supervisor.send(LockedDown(layers=(*layers, "no-new-privs")), tuple(listeners))
    close_all(listeners)
    supervisor.close()
