"""The loop of a locked-down worker: load the model, then run one job after another."""

import traceback
from typing import Any

import torch

from weave import log
from weave.config.child_configs import WorkerModel
from weave.gpu_worker import device as devices
from weave.gpu_worker.controls import ControlRefused, Controls
from weave.gpu_worker.embeddings import EmbeddingRefused, added
from weave.gpu_worker.generation import Cancelled, Generation, generate
from weave.gpu_worker.inputs import read_inputs
from weave.gpu_worker.loading import load_pipeline
from weave.gpu_worker.loras import LoraRefused, merged
from weave.gpu_worker.prompts import KeptPrompts
from weave.gpu_worker.schedulers import IncompatibleScheduler
from weave.models.assets import source_of
from weave.models.files import ModelFilesRefused
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
from weave.protocol.checks import Offered, check_parameters
from weave.protocol.client_messages import Tokens
from weave.protocol.errors import RequestError
from weave.protocol.inputs import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, as_requested, task_of
from weave.protocol.worker_messages import MAX_DETAIL, CancelRun, Failed, Finished, Load, Loaded, Reason, Run, ToWorker


class FamilyUnsupported(Exception):
    """The libraries lack something that the model's family, or a task, needs; the zygote has logged what."""


# Of errors that say themselves what the log needs.
_REASONS: dict[type[Exception], Reason] = {
    Cancelled: "cancelled",
    IncompatibleScheduler: "scheduler",
    LoraRefused: "lora",
    EmbeddingRefused: "embedding",
    ControlRefused: "control",
    FamilyUnsupported: "libraries",
    ModelFilesRefused: "refused",
    RequestError: "bounds",
}


def serve(
    channel: Channel[ToWorker], model: WorkerModel, device: torch.device, dtype: torch.dtype, *, tasks: frozenset[str]
) -> None:
    """Answer the broker. `tasks` are those that the libraries can run. Never returns: raises ChannelClosed when the
    broker disconnects, or ChannelViolation."""
    pipeline: Any = None
    controls, prompts = Controls(), KeptPrompts()
    while True:
        message, descriptors = receive(channel)
        if descriptors and not isinstance(message, Run):
            close_all(descriptors)
            raise ChannelViolation("unexpected descriptors")
        if isinstance(message, Load) and pipeline is None:
            try:
                _check_supported(model, TEXT_TO_IMAGE, tasks)
                pipeline = _load(model, device, dtype)
            except Exception as error:
                channel.send(_failed(0, error, device))
            else:
                channel.send(Loaded(device=str(device), dtype=str(dtype)[6:], memory=devices.memory(device)))
        elif isinstance(message, Run) and pipeline is not None:
            try:
                tokens = _run(channel, pipeline, model, controls, prompts, message, descriptors, tasks)
            except Exception as error:
                if devices.is_out_of_memory(error):
                    controls.drop()
                channel.send(_failed(message.job, error, device))
            else:
                channel.send(Finished(job=message.job, memory=devices.memory(device), tokens=tokens))
        elif not isinstance(message, CancelRun):  # a cancel may arrive after its job has finished
            raise ChannelViolation(f"{type(message).__name__} out of turn")


def receive(channel: Channel[ToWorker]) -> tuple[ToWorker, list[int]]:
    """The broker's next message, and its descriptors. Raises ChannelClosed, ChannelViolation."""
    return channel.receive()


def _run(
    channel: Channel[ToWorker],
    pipeline: Any,
    model: WorkerModel,
    controls: Controls,
    prompts: KeptPrompts,
    run: Run,
    descriptors: list[int],
    tasks: frozenset[str],
) -> Tokens:
    """Takes ownership of `descriptors`, the job's images, and keeps nothing of them."""
    parameters = run.parameters
    try:
        # The broker has checked these already; a compromised broker has not.
        check_parameters(parameters, _offered(model))
        for task in (task_of(parameters), *([IMAGE_TO_IMAGE] if parameters.enlarge else [])):
            _check_supported(model, as_requested(task, parameters), tasks)
        inputs = read_inputs(parameters, descriptors)
    finally:
        close_all(descriptors)
    nets = controls.prepare(pipeline, model, parameters.control)
    with (
        merged(pipeline, model, parameters.loras),
        added(pipeline, model, parameters.embeddings) as expand,
    ):
        encoding = prompts.encoding(model, parameters)
        return generate(Generation(channel, pipeline, model.offer, run, expand, inputs, nets, encoding))


def _check_supported(model: WorkerModel, task: str, tasks: frozenset[str]) -> None:
    if task not in tasks:
        raise FamilyUnsupported(f"family {model.offer.family} lacks {task}: see libraries_lack in the log")


def _offered(model: WorkerModel) -> Offered:
    return Offered(
        bounds=model.offer.bounds,
        schedulers=model.offer.schedulers,
        tasks=model.offer.tasks,
        loras=tuple(lora.offer for lora in model.loras),
        embeddings=tuple(embedding.offer for embedding in model.embeddings),
        controls=tuple(control.offer for control in model.controls),
    )


def _load(model: WorkerModel, device: torch.device, dtype: torch.dtype) -> object:
    source = source_of(model.path, model.layout, model.parts)
    return load_pipeline(model.offer.family, source, device, dtype, model.sha256)


def _failed(job: int, error: Exception, device: torch.device) -> Failed:
    """The error as a message for the broker. Errors of the channel are raised again: they end the worker."""
    if isinstance(error, ChannelClosed | ChannelViolation):
        raise error
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return Failed(job=job, reason=reason, detail=str(error)[:MAX_DETAIL])
    out_of_memory = devices.is_out_of_memory(error)
    log.write("worker", "job_failed", job=job, detail="".join(traceback.format_exception(error))[-4000:])
    # The traceback refers to the failed job's tensors.
    error.__traceback__ = None
    devices.release_memory(device)
    return Failed(job=job, reason="out_of_memory" if out_of_memory else "internal", detail=str(error)[:MAX_DETAIL])
