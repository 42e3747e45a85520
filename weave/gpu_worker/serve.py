"""The loop of a locked-down worker: load the model, then run one job after another."""

import traceback
from typing import Any, NamedTuple

import torch

from weave import log
from weave.config.child_configs import WorkerModel
from weave.gpu_worker import device as devices
from weave.gpu_worker.controls import ControlRefused, Controls
from weave.gpu_worker.embeddings import EmbeddingRefused, added
from weave.gpu_worker.generation import Cancelled, Generation, Sent, generate
from weave.gpu_worker.inputs import Inputs, read_inputs
from weave.gpu_worker.loading import load_pipeline
from weave.gpu_worker.loras import LoraRefused, merged
from weave.gpu_worker.pipelines.base import PromptRefused
from weave.gpu_worker.planner import NoRoom, Planned, Planner
from weave.gpu_worker.prompts import KeptPrompts
from weave.gpu_worker.schedulers import IncompatibleScheduler
from weave.models.assets import source_of
from weave.models.files import ModelFilesRefused
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
from weave.protocol.checks import Offered, check_parameters
from weave.protocol.client_messages import Tokens
from weave.protocol.errors import RequestError
from weave.protocol.inputs import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, as_requested, task_of
from weave.protocol.worker_messages import (
    MAX_DETAIL,
    CancelRun,
    Failed,
    Finished,
    Load,
    Loaded,
    Reason,
    Restarted,
    Run,
    ToWorker,
)
from weave.protocol.worker_messages import Planned as PlannedMessage


class FamilyUnsupported(Exception):
    """The libraries lack something that the model's family, or a task, needs; the zygote has logged what."""


# Of errors that say themselves what the log needs.
_REASONS: dict[type[Exception], Reason] = {
    Cancelled: "cancelled",
    IncompatibleScheduler: "scheduler",
    LoraRefused: "lora",
    EmbeddingRefused: "embedding",
    ControlRefused: "control",
    PromptRefused: "prompt",
    FamilyUnsupported: "libraries",
    ModelFilesRefused: "refused",
    NoRoom: "too_large",
    RequestError: "bounds",
}


class _Loaded(NamedTuple):
    """What all jobs share."""

    channel: Channel[ToWorker]
    model: WorkerModel
    pipeline: Any
    planner: Planner
    controls: Controls
    prompts: KeptPrompts
    tasks: frozenset[str]


def serve(
    channel: Channel[ToWorker], model: WorkerModel, planner: Planner, dtype: torch.dtype, *, tasks: frozenset[str]
) -> None:
    """Answer the broker. `tasks` are those that the libraries can run. Never returns: raises ChannelClosed when the
    broker disconnects, or ChannelViolation."""
    device, loaded = planner.placement.device, None
    while True:
        message, descriptors = receive(channel)
        if descriptors and not isinstance(message, Run):
            close_all(descriptors)
            raise ChannelViolation("unexpected descriptors")
        if isinstance(message, Load) and loaded is None:
            try:
                _check_supported(model, TEXT_TO_IMAGE, tasks)
                pipeline = _load(channel, model, planner, dtype, message)
                loaded = _Loaded(channel, model, pipeline, planner, Controls(planner.placement), KeptPrompts(), tasks)
            except Exception as error:
                channel.send(_failed(0, error, device))
            else:
                channel.send(Loaded(device=str(device), dtype=str(dtype)[6:], memory=planner.memory()))
        elif isinstance(message, Run) and loaded is not None:
            try:
                channel.send(_run(loaded, message, descriptors))
            except Exception as error:
                if devices.is_out_of_memory(error):
                    loaded.controls.drop()
                channel.send(_failed(message.job, error, device))
        elif not isinstance(message, CancelRun):  # a cancel may arrive after its job has finished
            raise ChannelViolation(f"{type(message).__name__} out of turn")


def receive(channel: Channel[ToWorker]) -> tuple[ToWorker, list[int]]:
    """The broker's next message, and its descriptors. Raises ChannelClosed, ChannelViolation."""
    return channel.receive()


def _run(loaded: _Loaded, run: Run, descriptors: list[int]) -> Finished:
    """Takes ownership of `descriptors`, the job's images, and keeps nothing of them."""
    model, parameters = loaded.model, run.parameters
    try:
        # The broker has checked these already; a compromised broker has not.
        check_parameters(parameters, _offered(model))
        for task in (task_of(parameters), *([IMAGE_TO_IMAGE] if parameters.enlarge else [])):
            _check_supported(model, as_requested(task, parameters), loaded.tasks)
        inputs = read_inputs(parameters, descriptors)
    finally:
        close_all(descriptors)
    planned, sent = loaded.planner.plan(parameters), Sent()
    try:
        tokens = _generate(loaded, run, inputs, planned, sent)
    except Exception as error:
        following = loaded.planner.after(planned) if devices.is_out_of_memory(error) else None
        if following is None:
            raise
        log.write("worker", "memory_short", job=run.job, plan=planned.plan.name, detail=str(error)[:MAX_DETAIL])
        planned = following
    else:
        return _finished(loaded, run, planned, tokens)
    # The exception has been released by now, and with it the failed attempt's tensors.
    loaded.controls.drop()
    devices.release_memory(loaded.planner.placement.device)
    loaded.channel.send(Restarted(job=run.job, plan=planned.plan.name))
    return _finished(loaded, run, planned, _generate(loaded, run, inputs, planned, sent))


def _generate(loaded: _Loaded, run: Run, inputs: Inputs, planned: Planned, sent: Sent) -> Tokens:
    model, parameters, pipeline, placement = loaded.model, run.parameters, loaded.pipeline, loaded.planner.placement
    loaded.planner.apply(pipeline, planned)
    nets = loaded.controls.prepare(pipeline, model, parameters.control, task_of(parameters))
    loaded.planner.begin(planned)
    with (
        merged(pipeline, model, parameters.loras, placement),
        added(pipeline, model, parameters.embeddings, placement) as expand,
    ):
        encoding = loaded.prompts.encoding(model, parameters)
        return generate(Generation(loaded.channel, pipeline, model.offer, run, expand, sent, inputs, nets, encoding))


def _finished(loaded: _Loaded, run: Run, planned: Planned, tokens: Tokens) -> Finished:
    return Finished(job=run.job, memory=loaded.planner.memory(), plan=planned.plan.name, tokens=tokens)


def _check_supported(model: WorkerModel, task: str, tasks: frozenset[str]) -> None:
    if task not in tasks:
        raise FamilyUnsupported(f"family {model.offer.family} lacks {task}: see libraries_lack in the log")


def _offered(model: WorkerModel) -> Offered:
    return Offered(
        bounds=model.offer.bounds,
        schedulers=model.offer.schedulers,
        caches=model.offer.caches,
        tasks=model.offer.tasks,
        loras=tuple(lora.offer for lora in model.loras),
        embeddings=tuple(embedding.offer for embedding in model.embeddings),
        controls=tuple(control.offer for control in model.controls),
    )


def _load(channel: Channel[ToWorker], model: WorkerModel, planner: Planner, dtype: torch.dtype, load: Load) -> Any:
    if load.parameters is not None:
        check_parameters(load.parameters, _offered(model))
    planned = planner.plan_load(load.parameters)
    channel.send(PlannedMessage(plan=planned.plan.name))
    source = source_of(model.path, model.layout, model.parts)
    take = None if planned.plan.placement == "card" else planner.take
    device = planner.placement.device
    return load_pipeline(model.offer.family, source, device, dtype, model.sha256, take, model.weights)


def _failed(job: int, error: Exception, device: torch.device) -> Failed:
    """The error as a message for the broker. Errors of the channel and of the driver are raised again: they end the
    worker."""
    if isinstance(error, ChannelClosed | ChannelViolation):
        raise error
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            too_large = error.found if isinstance(error, NoRoom) else None
            return Failed(job=job, reason=reason, detail=str(error)[:MAX_DETAIL], too_large=too_large)
    if devices.is_broken(error):
        raise error
    out_of_memory = devices.is_out_of_memory(error)
    log.write("worker", "job_failed", job=job, detail="".join(traceback.format_exception(error))[-4000:])
    # The traceback refers to the failed job's tensors.
    error.__traceback__ = None
    devices.release_memory(device)
    return Failed(job=job, reason="out_of_memory" if out_of_memory else "internal", detail=str(error)[:MAX_DETAIL])
