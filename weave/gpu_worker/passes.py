"""One pass of the denoiser through its steps, for one image or for several together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from msgspec import structs
from PIL import Image

from weave.gpu_worker.canvas import canvas_of
from weave.gpu_worker.classes import pipeline_for
from weave.gpu_worker.controls import control_arguments
from weave.gpu_worker.decode import decode
from weave.gpu_worker.inputs import Inputs
from weave.gpu_worker.pipelines.base import Adapter
from weave.gpu_worker.prompts import Encoding, not_kept
from weave.gpu_worker.schedulers import set_scheduler, steps_done
from weave.gpu_worker.seeds import generator, seed_global_generators
from weave.gpu_worker.step_caches import step_cache
from weave.models.family import Family
from weave.models.schedulers import SCHEDULERS
from weave.protocol.inputs import InputImage, task_of
from weave.protocol.parameters import Parameters

# Called after each step with its number (from 1) and a function that decodes the first image as it is then.
AfterStep = Callable[[int, Callable[[], Image.Image]], None]


class Pass(NamedTuple):
    """What a pass generates: an image for each of `seeds`. `arguments` are the adapter's, for the pipeline's call;
    `controls` are the ControlNets of the job; `encoding` caches the encodings of its prompts."""

    inputs: Inputs
    parameters: Parameters
    arguments: dict[str, Any]
    seeds: tuple[int, ...]
    controls: tuple[Any, ...] = ()
    encoding: Encoding = not_kept

    def then_enlarge(self, number: int, image: Image.Image) -> "Pass":
        """The second pass for image `number` (from 0) of this one, if the job has `enlarge`."""
        parameters = enlarging(self.parameters)
        enlarged = image.resize((parameters.width, parameters.height), Image.Resampling.LANCZOS)
        return self._replace(
            inputs=self.inputs._replace(image=enlarged), parameters=parameters, seeds=self.seeds[number : number + 1]
        )


def enlarging(parameters: Parameters) -> Parameters:
    """The parameters of the second pass of a job with `enlarge`."""
    assert parameters.enlarge is not None
    width, height = parameters.output_size
    return structs.replace(
        parameters,
        width=width,
        height=height,
        image=InputImage(width=width, height=height),
        strength=parameters.enlarge.strength,
        enlarge=None,
        cache="none",
    )


def starts_from_image(parameters: Parameters, family: Family) -> bool:
    """Whether the pipeline starts from the job's image, and not from noise."""
    nets = family.control_nets if parameters.control else None
    return parameters.image is not None and (nets is None or task_of(parameters) not in nets.from_noise)


def steps_of(parameters: Parameters, family: Family) -> int:
    """How many steps of a pass run. With an image to start from those are a fraction, which the pipelines round as
    here."""
    steps, strength = parameters.steps, parameters.strength
    if not starts_from_image(parameters, family):
        return steps
    if SCHEDULERS[parameters.scheduler].kind == "flow":
        return steps - int(max(steps - min(steps * strength, steps), 0))
    return min(int(steps * strength), steps)


def run_pass(own: Any, adapter: Adapter, wanted: Pass, after_step: AfterStep) -> tuple[list[Image.Image], Any]:
    """The images, and the pipeline that generated them. `own` is the model's pipeline. Raises IncompatibleScheduler,
    and any exception of the pipeline or of `after_step`."""
    parameters, seeds, family = wanted.parameters, wanted.seeds, adapter.family
    steps, partial = steps_of(parameters, family), starts_from_image(parameters, family)
    set_scheduler(own, parameters.scheduler, parameters.steps, partial=partial)
    pipeline = pipeline_for(own, family, task_of(parameters), wanted.controls)
    canvas = canvas_of(pipeline, wanted.inputs, parameters)
    reported, latents = 0, torch.empty(0)

    def decoded(number: int) -> Image.Image:
        image = decode(pipeline, adapter, latents[number : number + 1], parameters.width, parameters.height)
        return canvas.finish(pipeline, image)

    def after_call(pipeline: Any, call: int, _: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal reported, latents
        latents = tensors["latents"]
        done = steps_done(call, pipeline.num_timesteps, steps, pipeline.scheduler.order)
        for step in range(reported + 1, done + 1):
            after_step(step, lambda: decoded(0))
        reported = done
        return tensors

    seed_global_generators(seeds[0])
    generators = [generator(seed) for seed in seeds]
    given = adapter.canvas_arguments(pipeline, canvas, parameters)
    several: dict[str, Any] = {"num_images_per_prompt": len(seeds), "generator": generators}
    if canvas.image is not None and "image" in given:  # once for each seed: encoding draws noise from its generator
        several["image"] = [canvas.image] * len(seeds)
    denoiser = getattr(pipeline, family.denoiser)
    with torch.inference_mode(), wanted.encoding(pipeline), step_cache(denoiser, parameters.cache, steps):
        adapter.call(
            pipeline,
            wanted.arguments,
            **{
                **given,
                **control_arguments(pipeline, canvas, wanted.inputs.controls, parameters),
                **(several if len(seeds) > 1 else {"generator": generators[0]}),
            },
            num_inference_steps=parameters.steps,
            callback_on_step_end=after_call,
            output_type="latent",
        )
        return [decoded(number) for number in range(len(seeds))], pipeline
