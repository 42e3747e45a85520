"""One job on a loaded pipeline: its images one after the other, told step by step, stopped between two steps."""

import io
import select
from typing import Any, NamedTuple

import msgspec
import torch
from PIL import Image, PngImagePlugin

import weave
from weave.gpu_worker.decode import decode, preview
from weave.gpu_worker.pipelines import adapter_of
from weave.gpu_worker.pipelines.base import Adapter
from weave.gpu_worker.schedulers import set_scheduler, steps_done
from weave.gpu_worker.seeds import generator, seed_everything_else
from weave.gpu_worker.tokens import count_tokens
from weave.protocol.bounds import MAX_SEED
from weave.protocol.channel import Channel, ChannelViolation, close_all, sealed_memfd
from weave.protocol.client_messages import ModelOffer, Tokens
from weave.protocol.parameters import Parameters, png_text
from weave.protocol.worker_messages import CancelRun, Made, Previewed, Progressed, Run, ToWorker


class Cancelled(Exception):
    """The broker wants this job no more."""


class Job(NamedTuple):
    """All that a job needs."""

    channel: Channel[ToWorker]
    pipeline: Any
    model: ModelOffer
    run: Run

    @property
    def adapter(self) -> Adapter:
        """How the model's family is called."""
        return adapter_of(self.model.family)


def run(job: Job) -> Tokens:
    """Draw and send every image; what was used of the prompts. Raises Cancelled, SchedulerUnfit, and whatever the
    pipeline raises."""
    parameters = job.run.parameters
    prompts = parameters.encoder_prompts or (parameters.prompt,)
    arguments = job.adapter.call_arguments(prompts, parameters.negative_prompt, parameters.cfg_scale)
    tokens = Tokens()
    for image in range(parameters.images):
        _check_cancel(job)
        drawn = _draw(job, image, arguments)
        tokens = count_tokens(job.pipeline, job.adapter, arguments)
        data = drawn.tobytes() if parameters.format == "raw" else _png(drawn, _text(job, image, tokens))
        _send(job, Made(job=job.run.job, image=image, size=len(data)), data)
    return tokens


def _draw(job: Job, image: int, arguments: dict[str, Any]) -> Image.Image:
    parameters = job.run.parameters
    set_scheduler(job.pipeline, parameters.scheduler, parameters.steps)
    told = 0

    def after_call(pipeline: Any, call: int, _: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal told
        _check_cancel(job)
        done = steps_done(call, pipeline.num_timesteps, parameters.steps, pipeline.scheduler.order)
        for step in range(told + 1, done + 1):
            job.channel.send(Progressed(job=job.run.job, image=image, step=step))
            if parameters.preview_every and step % parameters.preview_every == 0:
                _send_preview(job, image, step, tensors["latents"])
        told = done
        return tensors

    seed = _seed(parameters, image)
    seed_everything_else(seed)
    with torch.inference_mode():
        latents = job.pipeline(
            **arguments,
            width=parameters.width,
            height=parameters.height,
            num_inference_steps=parameters.steps,
            generator=generator(seed),
            callback_on_step_end=after_call,
            output_type="latent",
        ).images
        drawn = decode(job.pipeline, job.adapter, latents, parameters.width, parameters.height)
    _check_size(drawn, parameters)
    return drawn


def _check_size(drawn: Image.Image, parameters: Parameters) -> None:
    """Clients lay out memory by the size that they asked for, and raw pixels do not say theirs."""
    if drawn.size != (parameters.width, parameters.height):
        width, height = drawn.size
        raise RuntimeError(f"the model drew {width}x{height}, asked for was {parameters.width}x{parameters.height}")


def _seed(parameters: Parameters, image: int) -> int:
    return (parameters.seed + image) & MAX_SEED


def _check_cancel(job: Job) -> None:
    poll = select.poll()
    poll.register(job.channel, select.POLLIN)
    while poll.poll(0):
        message, descriptors = job.channel.receive()
        close_all(descriptors)
        if descriptors or not isinstance(message, CancelRun):
            raise ChannelViolation("only a cancel may come while a job runs")
        if message.job == job.run.job:
            raise Cancelled


def _send_preview(job: Job, image: int, step: int, latents: torch.Tensor) -> None:
    parameters = job.run.parameters
    drawn = preview(job.pipeline, job.adapter, latents, parameters.width, parameters.height)
    data = _png(drawn, PngImagePlugin.PngInfo())
    width, height = drawn.size
    message = Previewed(job=job.run.job, image=image, step=step, width=width, height=height, size=len(data))
    _send(job, message, data)


def _send(job: Job, message: Made | Previewed, data: bytes) -> None:
    memfd = sealed_memfd("weave-image", data)
    try:
        job.channel.send(message, (memfd,))
    finally:
        close_all([memfd])


def _text(job: Job, image: int, tokens: Tokens) -> PngImagePlugin.PngInfo:
    """A picture carries what it takes to make it again."""
    parameters = job.run.parameters
    info = PngImagePlugin.PngInfo()
    fields = {
        "Software": f"weave-compute {weave.__version__}",
        **png_text(parameters, model=job.model.id, seed=_seed(parameters, image)),
        "tokens": msgspec.json.encode(tokens).decode(),
    }
    for name, value in fields.items():
        info.add_itxt(name, value)
    return info


def _png(image: Image.Image, info: PngImagePlugin.PngInfo) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()
