"""One job on a loaded pipeline: generates its images in order, reports each step, and checks for a cancel at each."""

import io
import select
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from weave.gpu_worker.decode import reduced
from weave.gpu_worker.embeddings import Expand
from weave.gpu_worker.inputs import Inputs
from weave.gpu_worker.metadata import metadata
from weave.gpu_worker.passes import AfterStep, Pass, enlarging, run_pass, steps_of
from weave.gpu_worker.pipelines import adapter_of
from weave.gpu_worker.pipelines.base import Adapter
from weave.gpu_worker.prompts import Encoding, not_kept
from weave.gpu_worker.tokens import count_tokens
from weave.protocol.bounds import MAX_SEED
from weave.protocol.channel import Channel, ChannelViolation, close_all, sealed_memfd
from weave.protocol.client_messages import ModelOffer, Tokens
from weave.protocol.parameters import Parameters
from weave.protocol.worker_messages import CancelRun, Made, Previewed, Progressed, Run, ToWorker


class Cancelled(Exception):
    """The broker has cancelled the job."""


class Sent:
    """How many images of the job were sent: a second attempt continues after them."""

    images = 0


class Generation(NamedTuple):
    """The broker's Run message, and what is needed to carry it out. `expand` puts the embeddings' tokens into a
    prompt; `sent` counts the images; `inputs` are the images that came with the message, `controls` the ControlNets
    that it names; `encoding` caches the encodings of its prompts."""

    channel: Channel[ToWorker]
    pipeline: Any
    model: ModelOffer
    run: Run
    expand: Expand
    sent: Sent
    inputs: Inputs = Inputs()
    controls: tuple[Any, ...] = ()
    encoding: Encoding = not_kept

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
    first = generation.sent.images // parameters.batch * parameters.batch
    for start in range(first, parameters.images, parameters.batch):
        numbers = range(start, min(start + parameters.batch, parameters.images))
        seeds = tuple(_seed(parameters, number) for number in numbers)
        for number, image, pipeline in _generate_images(
            generation,
            numbers,
            Pass(generation.inputs, parameters, arguments, seeds, generation.controls, generation.encoding),
        ):
            _check_size(image, parameters)
            tokens = count_tokens(pipeline, generation.adapter, arguments)
            info = metadata(
                parameters,
                model=generation.model.id,
                number=number,
                tokens=tokens,
                digests=generation.inputs.digests,
            )
            data = image.tobytes() if parameters.format == "raw" else _png(image, info)
            _send(generation, Made(job=generation.run.job, image=number, size=len(data)), data)
            generation.sent.images += 1
    return tokens


def _generate_images(generation: Generation, numbers: range, first: Pass) -> Iterator[tuple[int, Image.Image, Any]]:
    """Yields each of the `numbers` with its finished image and the last pipeline. The images of one pass share its
    progress, which is reported for the first of them; each is then enlarged on its own. Those that were sent already
    are left out."""
    _check_cancelled(generation)
    own, adapter, enlarges = generation.pipeline, generation.adapter, first.parameters.enlarge is not None
    unsent = max(numbers[0], generation.sent.images)
    steps = steps_of(first.parameters, adapter.family)
    more = steps_of(enlarging(first.parameters), adapter.family) if enlarges else 0
    report = _report(generation, unsent, 0, steps + more)
    images, pipeline = run_pass(own, adapter, first, report)
    for at, number in enumerate(numbers):
        if number < unsent:
            continue
        image = images[at]
        if enlarges:
            before = steps if number == unsent else 0
            report = _report(generation, number, before, before + more)
            (image,), pipeline = run_pass(own, adapter, first.then_enlarge(at, image), report)
        yield number, image, pipeline


def _report(generation: Generation, number: int, before: int, steps: int) -> AfterStep:
    """Returns a function that reports the steps of a pass for image `number` and sends previews; it raises Cancelled.
    `steps` includes the steps `before` this pass."""
    job, every = generation.run.job, generation.run.parameters.preview_every

    def after_step(step_of_pass: int, decoded: Callable[[], Image.Image]) -> None:
        _check_cancelled(generation)
        step = before + step_of_pass
        generation.channel.send(Progressed(job=job, image=number, step=step, steps=steps))
        if every and step % every == 0:
            image = reduced(decoded())
            data = _png(image, PngImagePlugin.PngInfo())
            width, height = image.size
            message = Previewed(job=job, image=number, step=step, width=width, height=height, size=len(data))
            _send(generation, message, data)

    return after_step


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


def _send(generation: Generation, message: Made | Previewed, data: bytes) -> None:
    memfd = sealed_memfd("weave-image", data)
    try:
        generation.channel.send(message, (memfd,))
    finally:
        close_all([memfd])


def _png(image: Image.Image, info: PngImagePlugin.PngInfo) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()
