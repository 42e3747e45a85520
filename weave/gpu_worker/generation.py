"""One job on a loaded pipeline: generates its images in order, reports each step, and checks for a cancel at each."""

import io
import select
from typing import Any, NamedTuple

import msgspec
import torch
from PIL import Image, PngImagePlugin

import weave
from weave.gpu_worker.canvas import canvas_of
from weave.gpu_worker.classes import pipeline_for
from weave.gpu_worker.decode import decode, preview
from weave.gpu_worker.embeddings import Expand
from weave.gpu_worker.inputs import Inputs
from weave.gpu_worker.pipelines import adapter_of
from weave.gpu_worker.pipelines.base import Adapter
from weave.gpu_worker.schedulers import set_scheduler, steps_done
from weave.gpu_worker.seeds import generator, seed_global_generators
from weave.gpu_worker.tokens import count_tokens
from weave.protocol.bounds import MAX_SEED
from weave.protocol.channel import Channel, ChannelViolation, close_all, sealed_memfd
from weave.protocol.client_messages import ModelOffer, Tokens
from weave.protocol.inputs import task_of
from weave.protocol.parameters import Parameters, png_text
from weave.protocol.worker_messages import CancelRun, Made, Previewed, Progressed, Run, ToWorker


class Cancelled(Exception):
    """The broker has cancelled the job."""


class Generation(NamedTuple):
    """The broker's Run message, and what it takes to carry it out. `expand` puts the embeddings' tokens into a
    prompt; `inputs` are the images that came with the message."""

    channel: Channel[ToWorker]
    pipeline: Any
    model: ModelOffer
    run: Run
    expand: Expand
    inputs: Inputs = Inputs()

    @property
    def adapter(self) -> Adapter:
        """The adapter of the model's family."""
        return adapter_of(self.model.family)


def generate(generation: Generation) -> Tokens:
    """Generate and send every image. Returns how many tokens of the prompts were used.

    Raises Cancelled, IncompatibleScheduler, and any exception of the pipeline.
    """
    parameters = generation.run.parameters
    prompts = tuple(map(generation.expand, parameters.encoder_prompts or (parameters.prompt,)))
    negative_prompt = generation.expand(parameters.negative_prompt)
    arguments = generation.adapter.call_arguments(prompts, negative_prompt, parameters.cfg_scale)
    tokens = Tokens()
    for number in range(parameters.images):
        _check_cancelled(generation)
        image, pipeline = _generate_image(generation, number, arguments)
        tokens = count_tokens(pipeline, generation.adapter, arguments)
        data = image.tobytes() if parameters.format == "raw" else _png(image, _metadata(generation, number, tokens))
        _send(generation, Made(job=generation.run.job, image=number, size=len(data)), data)
    return tokens


def _generate_image(generation: Generation, number: int, arguments: dict[str, Any]) -> tuple[Image.Image, Any]:
    """The image, and the pipeline that generated it."""
    parameters = generation.run.parameters
    set_scheduler(generation.pipeline, parameters.scheduler, parameters.steps)
    pipeline = pipeline_for(generation.pipeline, generation.adapter.family, task_of(parameters))
    canvas = canvas_of(pipeline, generation.inputs, parameters)
    reported, latents = 0, torch.empty(0)

    def after_call(pipeline: Any, call: int, _: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal reported, latents
        _check_cancelled(generation)
        latents = tensors["latents"]
        steps, order = parameters.steps, pipeline.scheduler.order
        if parameters.image is not None:
            steps = min(-(-pipeline.num_timesteps // order), steps)
        done = steps_done(call, pipeline.num_timesteps, steps, order)
        for step in range(reported + 1, done + 1):
            _report_step(generation, number, step, steps, latents)
        reported = done
        return tensors

    seed = _seed(parameters, number)
    seed_global_generators(seed)
    with torch.inference_mode():
        generation.adapter.call(
            pipeline,
            arguments,
            **generation.adapter.canvas_arguments(pipeline, canvas, parameters),
            num_inference_steps=parameters.steps,
            generator=generator(seed),
            callback_on_step_end=after_call,
            output_type="latent",
        )
        image = decode(pipeline, generation.adapter, latents, parameters.width, parameters.height)
        image = canvas.finish(pipeline, image)
    _check_size(image, parameters)
    return image, pipeline


def _seed(parameters: Parameters, number: int) -> int:
    """The seed of image `number` (from 0) of the job."""
    return (parameters.seed + number) & MAX_SEED


def _check_cancelled(generation: Generation) -> None:
    poll = select.poll()
    poll.register(generation.channel, select.POLLIN)
    while poll.poll(0):
        message, descriptors = generation.channel.receive()
        close_all(descriptors)
        if descriptors or not isinstance(message, CancelRun):
            raise ChannelViolation("only a cancel may arrive while a job runs")
        if message.job == generation.run.job:
            raise Cancelled


def _check_size(image: Image.Image, parameters: Parameters) -> None:
    """Clients allocate memory for the size that they requested, and raw pixels do not carry their size."""
    if image.size != parameters.output_size:
        (width, height), (wanted_width, wanted_height) = image.size, parameters.output_size
        raise RuntimeError(f"the model generated {width}x{height}, expected {wanted_width}x{wanted_height}")


def _report_step(generation: Generation, number: int, step: int, steps: int, latents: torch.Tensor) -> None:
    job, parameters = generation.run.job, generation.run.parameters
    generation.channel.send(Progressed(job=job, image=number, step=step, steps=steps))
    if parameters.preview_every and step % parameters.preview_every == 0:
        image = preview(generation.pipeline, generation.adapter, latents, parameters.width, parameters.height)
        data = _png(image, PngImagePlugin.PngInfo())
        width, height = image.size
        message = Previewed(job=job, image=number, step=step, width=width, height=height, size=len(data))
        _send(generation, message, data)


def _send(generation: Generation, message: Made | Previewed, data: bytes) -> None:
    memfd = sealed_memfd("weave-image", data)
    try:
        generation.channel.send(message, (memfd,))
    finally:
        close_all([memfd])


def _metadata(generation: Generation, number: int, tokens: Tokens) -> PngImagePlugin.PngInfo:
    """The PNG's text chunks: everything needed to generate the image again."""
    parameters = generation.run.parameters
    info = PngImagePlugin.PngInfo()
    fields = {
        "Software": f"weave-compute {weave.__version__}",
        **png_text(parameters, model=generation.model.id, seed=_seed(parameters, number)),
        "tokens": msgspec.json.encode(tokens).decode(),
    }
    for name, value in fields.items():
        info.add_itxt(name, value)
    return info


def _png(image: Image.Image, info: PngImagePlugin.PngInfo) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()
