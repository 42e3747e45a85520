"""A scheduler for each image, made from the model's own: none sees what the one before it left."""

import copy
from typing import Any

import diffusers
import torch

from weave.gpu_worker.device import is_out_of_memory
from weave.models.family import Family
from weave.models.schedulers import SCHEDULERS, Scheduler

# PNDM's Runge-Kutta warm-up needs this many steps.
_RUNGE_KUTTA_STEPS = 4
_USUAL_STEPS = 20


class SchedulerUnfit(Exception):
    """The model's scheduler_config.json rules this scheduler out; the message says by what."""


class FlowHeun(diffusers.FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """Heun's method on the sigmas of the Euler scheduler. diffusers' own class knows `shift` only: it ignores
    use_dynamic_shifting, use_karras_sigmas and the like, and SD3's pipeline fails when it passes `mu` to it."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, mu: float | None = None) -> None:
        """`mu` is what SD3's pipeline computes from the resolution, where the model wants it."""
        euler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(self.config)
        euler.set_timesteps(num_inference_steps, device=device, mu=mu)
        self.num_inference_steps = num_inference_steps
        # Every step but the last one asks the model twice: at its start, and at its end.
        self.timesteps = torch.cat([euler.timesteps[:1], euler.timesteps[1:].repeat_interleave(2)])
        self.sigmas = torch.cat([euler.sigmas[:1], euler.sigmas[1:-1].repeat_interleave(2), euler.sigmas[-1:]])
        self.prev_derivative = self.dt = None
        self._step_index = self._begin_index = None


def check_schedulers(pipeline: Any, family: Family) -> None:
    """Raises SchedulerUnfit where the model's own config rules out every scheduler of its family."""
    unfit = []
    for name in family.schedulers:
        try:
            fresh_scheduler(pipeline.scheduler, name, _USUAL_STEPS)
        except SchedulerUnfit as error:
            unfit.append(error)
        else:
            return
    raise unfit[0]


def set_scheduler(pipeline: Any, name: str, steps: int) -> None:
    """A fresh scheduler from the model's own, which the first call finds in the pipeline. Raises SchedulerUnfit."""
    own = pipeline.__dict__.setdefault("own_scheduler", pipeline.scheduler)
    pipeline.scheduler = fresh_scheduler(own, name, steps)


def fresh_scheduler(own: Any, name: str, steps: int) -> Any:
    """The scheduler that we call `name`, as diffusers makes it from the model's `own`, which no job ever runs.

    Raises SchedulerUnfit.
    """
    wanted = SCHEDULERS[name]
    try:
        made = _made(own, wanted, steps)
        _rehearse(copy.deepcopy(made), wanted, steps)
    except SchedulerUnfit:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise SchedulerUnfit(f"{wanted.class_name}: {type(error).__name__}: {error}"[:400]) from None
    return made


def _made(own: Any, wanted: Scheduler, steps: int) -> Any:
    config, class_name = own.config, wanted.class_name
    prediction = config.get("prediction_type", "epsilon")
    if wanted.kind == "diffusion" and prediction not in wanted.predictions:
        raise SchedulerUnfit(f"prediction_type is {prediction!r:.40}, which {class_name} does not know")
    if class_name == "FlowMatchHeunDiscreteScheduler":
        if config.get("invert_sigmas"):
            raise SchedulerUnfit(f"invert_sigmas is set, which {class_name} does not know")
        # With what the Euler scheduler has by default, too: SD3's pipeline reads it, and has other defaults.
        return FlowHeun.from_config({name: config[name] for name in config if name != "_use_default_values"})
    # Not from_config for the model's own class: it drops what the pipeline has corrected (steps_offset, clip_sample).
    same = class_name == type(own).__name__
    made = copy.deepcopy(own) if same else getattr(diffusers, class_name).from_config(config)
    if class_name == "PNDMScheduler" and ("skip_prk_steps" not in config or steps < _RUNGE_KUTTA_STEPS):
        made.register_to_config(skip_prk_steps=True)
    return made


def _rehearse(scheduler: Any, wanted: Scheduler, steps: int) -> None:
    """All steps on one pixel of nothing: what a class cannot do with a config it says only while it draws."""
    # Only those for flow matching are told `mu` by their pipelines.
    shift = {"mu": 1.0} if wanted.kind == "flow" else {}
    scheduler.set_timesteps(steps, **shift)
    pixel = torch.zeros(1, 4, 1, 1)
    for timestep in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(pixel, timestep)
        scheduler.step(pixel, timestep, pixel, return_dict=False)


def steps_done(call: int, calls: int, steps: int, order: int) -> int:
    """How many of `steps` are complete after call number `call` (from 0) of the model; a step may take several.

    PNDM makes its additional calls first, Heun two for each step but the last: `order`.
    """
    if call + 1 >= calls:
        return steps
    additional = max(calls - steps * order, 0)
    return min(max(call + 1 - additional, 0) // order, steps - 1)
