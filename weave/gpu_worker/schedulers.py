"""Each image gets a fresh scheduler, made from the model's own, so that no state passes from one image to the next."""

import copy
from typing import Any

import diffusers
import torch

from weave.gpu_worker.device import is_out_of_memory
from weave.models.schedulers import SCHEDULERS, SIGMAS, Scheduler, misfit, name_of

# PNDM's Runge-Kutta warm-up needs this many steps.
_RUNGE_KUTTA_STEPS = 4
_TRIAL_STEPS = 20


class IncompatibleScheduler(Exception):
    """The scheduler cannot work with the model's scheduler_config.json; the message says which value is the cause."""


class FlowHeun(diffusers.FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """Heun's method on the sigmas of the Euler scheduler. diffusers' own class supports `shift` only: it ignores
    use_dynamic_shifting, use_karras_sigmas and the like, and SD3's pipeline fails when it passes `mu` to it."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, mu: float | None = None) -> None:
        """`mu`: SD3's pipeline computes it from the resolution, for models with use_dynamic_shifting."""
        euler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(self.config)
        euler.set_timesteps(num_inference_steps, device=device, mu=mu)
        self.num_inference_steps = num_inference_steps
        # Every step but the last one calls the model twice: at its start, and at its end.
        self.timesteps = torch.cat([euler.timesteps[:1], euler.timesteps[1:].repeat_interleave(2)])
        self.sigmas = torch.cat([euler.sigmas[:1], euler.sigmas[1:-1].repeat_interleave(2), euler.sigmas[-1:]])
        self.prev_derivative = self.dt = None
        self._step_index = self._begin_index = None


def check_own_scheduler(own: Any) -> None:
    """Raises IncompatibleScheduler if the model's `own` scheduler cannot run with its own config."""
    fresh_scheduler(own, name_of(type(own).__name__), _TRIAL_STEPS)


def set_scheduler(pipeline: Any, name: str, steps: int, *, partial: bool = False) -> None:
    """Give the pipeline a fresh scheduler. The first call keeps the model's own one. Raises IncompatibleScheduler."""
    own = pipeline.__dict__.setdefault("own_scheduler", pipeline.scheduler)
    pipeline.scheduler = fresh_scheduler(own, name, steps, partial=partial)


def fresh_scheduler(own: Any, name: str, steps: int, *, partial: bool = False) -> Any:
    """The scheduler `name` (one of SCHEDULERS), as diffusers makes it from the model's `own`, which no job ever uses.
    `partial`: the pass starts from an image, not with the first step.

    Raises IncompatibleScheduler.
    """
    wanted = SCHEDULERS[name]
    if fault := misfit(name, type(own).__name__, own.config):
        raise IncompatibleScheduler(fault)
    try:
        scheduler = _build(own, wanted, steps, partial=partial)
        _dry_run(copy.deepcopy(scheduler), wanted, steps)
    except IncompatibleScheduler:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise IncompatibleScheduler(f"{wanted.class_name}: {type(error).__name__}: {error}"[:400]) from None
    return scheduler


def _build(own: Any, wanted: Scheduler, steps: int, *, partial: bool) -> Any:
    config, class_name = own.config, wanted.class_name
    if class_name == "FlowMatchHeunDiscreteScheduler":
        if config.get("invert_sigmas"):
            raise IncompatibleScheduler(f"invert_sigmas is set, which {class_name} does not support")
        # Includes the Euler scheduler's defaults: SD3's pipeline reads these keys, with defaults that differ.
        return FlowHeun.from_config(_explicit(config))
    # Not from_config for the model's own class: it drops the pipeline's corrections (steps_offset, clip_sample).
    same = class_name == type(own).__name__
    scheduler = copy.deepcopy(own) if same else getattr(diffusers, class_name).from_config(config)
    # The warm-up assumes that it starts with the first timestep.
    no_warm_up = partial or steps < _RUNGE_KUTTA_STEPS
    if class_name == "PNDMScheduler" and ("skip_prk_steps" not in config or no_warm_up):
        scheduler.register_to_config(skip_prk_steps=True)
    if "original_inference_steps" in scheduler.config:  # LCM and TCD choose their steps among these
        most = max(steps, scheduler.config.original_inference_steps)
        scheduler.register_to_config(original_inference_steps=most)
    if wanted.sigmas is not None:
        spaced = dict.fromkeys(SIGMAS.values(), False) | {wanted.sigmas: True}
        scheduler = type(scheduler).from_config(_explicit(scheduler.config) | spaced)
    return scheduler


def _explicit(config: Any) -> dict[str, Any]:
    """Without the list of keys that from_config would give their defaults."""
    return {key: value for key, value in config.items() if key != "_use_default_values"}


def _dry_run(scheduler: Any, wanted: Scheduler, steps: int) -> None:
    """All steps on one zero pixel: classes reject some values only when they run."""
    # Pipelines pass `mu` to flow-matching schedulers only.
    shift = {"mu": 1.0} if wanted.kind == "flow" else {}
    scheduler.set_timesteps(steps, **shift)
    pixel = torch.zeros(1, 4, 1, 1)
    for timestep in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(pixel, timestep)
        scheduler.step(pixel, timestep, pixel, return_dict=False)


def steps_done(call: int, calls: int, steps: int, order: int) -> int:
    """How many of `steps` are complete after call number `call` (from 0) of the model; a step may take several calls.

    PNDM makes its additional calls first. `order` is the calls per step: 2 for Heun, but 1 for its last step.
    """
    if call + 1 >= calls:
        return steps
    additional = max(calls - steps * order, 0)
    return min(max(call + 1 - additional, 0) // order, steps - 1)
