"""The loop of a locked-down worker: load the model, then run one job after another."""

import traceback

import torch

from weave import log
from weave.config.child_configs import WorkerModel
from weave.gpu_worker import device as devices
from weave.gpu_worker.generation import Cancelled, Generation, generate
from weave.gpu_worker.loading import load_pipeline
from weave.gpu_worker.schedulers import IncompatibleScheduler
from weave.models.assets import source_of
from weave.models.files import ModelFilesRefused
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
from weave.protocol.errors import RequestError
from weave.protocol.parameters import check_parameters
from weave.protocol.worker_messages import MAX_DETAIL, CancelRun, Failed, Finished, Load, Loaded, Run, ToWorker


class FamilyUnsupported(Exception):
    """The libraries lack something that the model's family needs; the zygote has logged what."""


def serve(
    channel: Channel[ToWorker], model: WorkerModel, device: torch.device, dtype: torch.dtype, *, supported: bool
) -> None:
    """Answer the broker. Never returns: raises ChannelClosed when the broker disconnects, or ChannelViolation."""
    pipeline = None
    while True:
        message = receive(channel)
        if isinstance(message, Load) and pipeline is None:
            try:
                if not supported:
                    raise FamilyUnsupported(f"family {model.offer.family} cannot run: see libraries_lack in the log")
                pipeline = _load(model, device, dtype)
            except Exception as error:
                channel.send(_failed(0, error, device))
            else:
                channel.send(Loaded(device=str(device), dtype=str(dtype)[6:], memory=devices.memory(device)))
        elif isinstance(message, Run) and pipeline is not None:
            try:
                # The broker has checked these already; a compromised broker has not.
                check_parameters(message.parameters, model.offer.bounds, model.offer.schedulers)
                tokens = generate(Generation(channel, pipeline, model.offer, message))
            except Exception as error:
                channel.send(_failed(message.job, error, device))
            else:
                channel.send(Finished(job=message.job, memory=devices.memory(device), tokens=tokens))
        elif not isinstance(message, CancelRun):  # a cancel may arrive after its job has finished
            raise ChannelViolation(f"{type(message).__name__} out of turn")


def receive(channel: Channel[ToWorker]) -> ToWorker:
    """The broker's next message; it never sends descriptors. Raises ChannelClosed, ChannelViolation."""
    message, descriptors = channel.receive()
    if descriptors:
        close_all(descriptors)
        raise ChannelViolation("unexpected descriptors")
    return message


def _load(model: WorkerModel, device: torch.device, dtype: torch.dtype) -> object:
    source = source_of(model.path, model.layout, model.parts)
    return load_pipeline(model.offer.family, source, device, dtype, model.sha256)


def _failed(job: int, error: Exception, device: torch.device) -> Failed:
    """The error as a message for the broker. Errors of the channel are raised again: they end the worker."""
    if isinstance(error, ChannelClosed | ChannelViolation):
        raise error
    if isinstance(error, Cancelled):
        return Failed(job=job, reason="cancelled", detail="")
    if isinstance(error, IncompatibleScheduler):
        return Failed(job=job, reason="scheduler", detail=str(error))
    if isinstance(error, FamilyUnsupported):
        return Failed(job=job, reason="libraries", detail=str(error))
    if isinstance(error, ModelFilesRefused | RequestError):
        return Failed(job=job, reason="refused", detail=str(error)[:MAX_DETAIL])
    out_of_memory = devices.is_out_of_memory(error)
    log.write("worker", "job_failed", job=job, detail="".join(traceback.format_exception(error))[-4000:])
    # The traceback refers to the failed job's tensors.
    error.__traceback__ = None
    devices.release_memory(device)
    return Failed(job=job, reason="out_of_memory" if out_of_memory else "internal", detail=str(error)[:MAX_DETAIL])
