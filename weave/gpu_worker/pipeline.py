"""One job on a loaded pipeline: its images one after the other, told step by step, stopped between two steps."""

import io
import select
from typing import Any, NamedTuple

import torch
from PIL import Image, PngImagePlugin

import weave
from weave.gpu_worker.families import call_arguments, decode_preview, set_scheduler
from weave.protocol.bounds import MAX_SEED, Parameters
from weave.protocol.channel import Channel, ChannelViolation, close_all, sealed_memfd
from weave.protocol.client_messages import ModelOffer
from weave.protocol.worker_messages import CancelRun, Made, Previewed, Progressed, Run, ToWorker


class Cancelled(Exception):
    """The broker wants this job no more."""


class Job(NamedTuple):
    """All that a job needs."""

    channel: Channel[ToWorker]
    pipeline: Any
    model: ModelOffer
    run: Run


def run(job: Job) -> None:
    """Draw and send every image. Raises Cancelled, and whatever the pipeline raises."""
    for image in range(job.run.parameters.images):
        _check_cancel(job)
        drawn = _draw(job, image)
        data = drawn.tobytes() if job.run.format == "raw" else _png(drawn, _text(job, image))
        _send(job, Made(job=job.run.job, image=image, size=len(data)), data)


def _draw(job: Job, image: int) -> Image.Image:
    parameters = job.run.parameters
    set_scheduler(job.pipeline, parameters.scheduler)

    def after_step(pipeline: Any, step: int, _: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        _check_cancel(job)
        # Some schedulers call back once more than there are steps (PNDM, Heun).
        if step < parameters.steps:
            job.channel.send(Progressed(job=job.run.job, image=image, step=step + 1))
            if job.run.preview_every and (step + 1) % job.run.preview_every == 0:
                _send_preview(job, image, step + 1, tensors["latents"])
        return tensors

    prompts = parameters.encoder_prompts or (parameters.prompt,)
    # On the CPU whatever the device, so that a seed gives the same noise everywhere.
    generator = torch.Generator("cpu").manual_seed(_seed(parameters, image))
    with torch.inference_mode():
        result = job.pipeline(
            **call_arguments(job.model.family, prompts, parameters.negative_prompt, parameters.cfg_scale),
            width=parameters.width,
            height=parameters.height,
            num_inference_steps=parameters.steps,
            generator=generator,
            callback_on_step_end=after_step,
            output_type="pil",
        )
    drawn: Image.Image = result.images[0]
    _check_size(drawn, parameters)
    return drawn.convert("RGB")


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
    preview = decode_preview(job.pipeline, job.model.family, latents, parameters.width, parameters.height)
    data = _png(preview.convert("RGB"), PngImagePlugin.PngInfo())
    width, height = preview.size
    message = Previewed(job=job.run.job, image=image, step=step, width=width, height=height, size=len(data))
    _send(job, message, data)


def _send(job: Job, message: Made | Previewed, data: bytes) -> None:
    memfd = sealed_memfd("weave-image", data)
    try:
        job.channel.send(message, (memfd,))
    finally:
        close_all([memfd])


def _text(job: Job, image: int) -> PngImagePlugin.PngInfo:
    """A picture carries what it takes to make it again."""
    parameters = job.run.parameters
    info = PngImagePlugin.PngInfo()
    fields = {
        "Software": f"weave-compute {weave.__version__}",
        "model": job.model.id,
        "prompt": parameters.prompt,
        "negative_prompt": parameters.negative_prompt,
        "seed": _seed(parameters, image),
        "steps": parameters.steps,
        "cfg_scale": parameters.cfg_scale,
        "scheduler": parameters.scheduler,
        "width": parameters.width,
        "height": parameters.height,
    }
    for name, value in fields.items():
        info.add_itxt(name, str(value))
    return info


def _png(image: Image.Image, info: PngImagePlugin.PngInfo) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()
