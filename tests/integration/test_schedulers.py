"""A model's own scheduler_config.json applies to every scheduler that is offered for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images, pixels
from tests.support.reference import Reference, fitting, make_small_model, served_like_here, write_index
from weave.client import WeaveError
from weave.gpu_worker.schedulers import FlowHeun, IncompatibleScheduler, fresh_scheduler, steps_done
from weave.models.families import FAMILIES
from weave.models.schedulers import SCHEDULERS
from weave.protocol.client_messages import Preview, Progress
from weave.protocol.errors import ErrorCode

BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DYNAMIC = {**FLOW, "use_dynamic_shifting": True}
COSXL = {"sigma_data": 1.0, "sigma_max": 120.0, "sigma_schedule": "exponential"}
# Each family and what its scheduler_config.json says.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("sd1", {"_class_name": "DDIMScheduler", **BASE}),  # clip_sample is what the pipeline corrects
    "trailing": ("sd1", {"_class_name": "EulerDiscreteScheduler", **BASE, "timestep_spacing": "trailing"}),
    "velocity": ("sdxl", {"_class_name": "UniPCMultistepScheduler", **BASE, "prediction_type": "v_prediction"}),
    "karras": ("sdxl", {"_class_name": "DPMSolverMultistepScheduler", **BASE, "use_karras_sigmas": True}),
    "edm": ("sdxl", {"_class_name": "EDMDPMSolverMultistepScheduler"}),
    "edm_velocity": ("sdxl", {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", **COSXL}),
    "lcm": ("sd1", {"_class_name": "LCMScheduler", **BASE, "original_inference_steps": 40}),
    "tcd": ("sdxl", {"_class_name": "TCDScheduler", **BASE}),
    "kutta": ("sd1", {"_class_name": "PNDMScheduler", **BASE, "skip_prk_steps": False}),
    "offset": ("sd1", {"_class_name": "PNDMScheduler", **BASE, "skip_prk_steps": True}),
    "sigmas": ("sd1", {"_class_name": "EulerDiscreteScheduler", **BASE, "sigma_min": 0.02, "sigma_max": 10.0}),
    "sde": ("sd1", {"_class_name": "DPMSolverMultistepScheduler", **BASE, "algorithm_type": "sde-dpmsolver++"}),
    "static": ("sd3", FLOW),
    "dynamic": ("sd3", DYNAMIC),
    "linear": ("sd3", {**DYNAMIC, "time_shift_type": "linear"}),
    "bounded": ("sd3", {**DYNAMIC, "base_shift": 0.3, "max_shift": 2.0, "base_image_seq_len": 16}),
    "terminal": ("sd3", {**DYNAMIC, "shift_terminal": 0.1}),
    "flow_karras": ("sd3", {**FLOW, "use_karras_sigmas": True}),
    "stochastic": ("sd3", {**FLOW, "stochastic_sampling": True}),
    "heun": ("sd3", {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 2.0}),
    "flux_static": ("flux", FLOW),
    "flux_stochastic": ("flux", {**DYNAMIC, "stochastic_sampling": True}),
}
RULED_OUT = {
    "sample": ("sd1", {"_class_name": "DDIMScheduler", **BASE, "prediction_type": "sample"}, "euler_a"),
    "inverted": ("sd3", {**FLOW, "invert_sigmas": True}, "flow_heun"),
    "solver": ("sd1", {"_class_name": "DDIMScheduler", **BASE, "algorithm_type": "dpmsolver"}, "dpmpp_2m"),
    "end": ("sd1", {"_class_name": "DDIMScheduler", **BASE, "final_sigmas_type": "unknown"}, "unipc"),
    "shifting": ("sdxl", {"_class_name": "PNDMScheduler", **BASE, "use_dynamic_shifting": True}, "unipc"),
    "interpolated": ("sdxl", {"_class_name": "PNDMScheduler", **BASE, "interpolation_type": "unknown"}, "euler"),
}
PROMPT, SEED, SCALE = "a red circle", 3, 4.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    families = {family: make_small_model(family, folder / f"of-{family}") for family in ("sd1", "sdxl", "sd3", "flux")}
    for name, (family, config, *_) in {**CONFIGS, **RULED_OUT}.items():
        model = folder / name
        model.mkdir()
        for part in families[family].iterdir():
            if part.name != "scheduler":
                (model / part.name).mkdir()
                for file in part.iterdir():
                    (model / part.name / file.name).hardlink_to(file)
        (model / "scheduler").mkdir()
        (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        write_index(family, model)
    return folder


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Daemon]:
    tables = "".join(
        f'[models.{name}]\npath = "{models / name}"\nfamily = "{family}"\n'
        for name, (family, *_) in {**CONFIGS, **RULED_OUT}.items()
    )
    with served_like_here(tables) as daemon:
        yield daemon


@pytest.mark.parametrize("name", CONFIGS)
def test_every_offered_scheduler_gives_the_image_of_diffusers(served: Daemon, models: Path, name: str) -> None:
    family = CONFIGS[name][0]
    plain = Reference(family, models / name)
    with served.client() as client:
        (offer,) = [model for model in client.list_models().models if model.id == name]
        assert offer.schedulers == FAMILIES[family].schedulers
        for scheduler in fitting(family, CONFIGS[name][1]["_class_name"]):
            # With shift_terminal diffusers divides by zero where there is one step.
            for steps in (2, 5) if "shift_terminal" in CONFIGS[name][1] else (1, 2, 5):
                expected = by_diffusers(plain, scheduler, steps)
                wanted = {"width": 64, "height": 64, "steps": steps, "cfg_scale": SCALE, "preview_every": 1}
                answers = generate(client, PROMPT, model=name, seed=SEED, scheduler=scheduler, **wanted)
                assert expected.std() > 0
                assert np.array_equal(pixels(images(answers)[0]), expected), (scheduler, steps)
                told = [
                    (type(answer.event), answer.event.step)
                    for answer in answers
                    if isinstance(answer.event, Progress | Preview)
                ]
                assert told == [(kind, step) for step in range(1, steps + 1) for kind in (Progress, Preview)]


def by_diffusers(plain: Reference, scheduler: str, steps: int) -> np.ndarray:
    config = plain.own.config
    if scheduler == "flow_heun" and config.get("_class_name") != "FlowMatchHeunDiscreteScheduler":
        made: Any = FlowHeun.from_config({k: v for k, v in config.items() if k != "_use_default_values"})
    elif scheduler == "pndm" and config.get("skip_prk_steps") is False:
        made = diffusers.PNDMScheduler.from_config(config, skip_prk_steps=steps < 4)
        made.register_to_config(steps_offset=1)  # as the pipeline corrects it
    else:
        made = plain.scheduler(scheduler)
    torch.manual_seed(SEED)  # stochastic_sampling takes its noise from torch's own generator
    sizes = {"width": 64, "height": 64, "num_inference_steps": steps, "guidance_scale": SCALE}
    return plain.generate(PROMPT, made, torch.Generator("cpu").manual_seed(SEED), **sizes)


@pytest.mark.parametrize("name", RULED_OUT)
def test_a_scheduler_the_models_config_rules_out_is_an_error(served: Daemon, name: str) -> None:
    family, config, scheduler = RULED_OUT[name]
    (reason,) = config.keys() - {"_class_name", "shift", *BASE}
    with served.client() as client:
        with pytest.raises(WeaveError, match=r"scheduler is one that this model's scheduler_config\.json") as e:
            generate(client, model=name, width=64, height=64, scheduler=scheduler)
        assert e.value.code is ErrorCode.OUT_OF_BOUNDS
        assert wait_for(lambda: [line for line in served.events("job_failed") if reason in line["detail"]])
        # The worker stays, and its other schedulers work.
        assert images(generate(client, model=name, width=64, height=64, scheduler=FAMILIES[family].schedulers[0]))


@pytest.mark.parametrize("name, scheduler", [("edm", "euler"), ("velocity", "edm_euler")])
def test_a_scheduler_for_other_noise_levels_is_an_error(served: Daemon, name: str, scheduler: str) -> None:
    fits = fitting("sdxl", CONFIGS[name][1]["_class_name"])
    with served.client() as client:
        with pytest.raises(WeaveError, match="scheduler is one that this model's") as e:
            generate(client, model=name, width=64, height=64, scheduler=scheduler)
        assert e.value.code is ErrorCode.OUT_OF_BOUNDS
        told = f"does not fit the model's {CONFIGS[name][1]['_class_name']}: use one of {', '.join(fits)}"
        assert wait_for(lambda: [line for line in served.events("job_failed") if told in line["detail"]])
        assert images(generate(client, model=name, width=64, height=64, scheduler=fits[0]))


@pytest.mark.parametrize(
    "name, change",
    [
        ("dpmpp_2m", {"variance_type": "learned"}),
        ("dpmpp_2m", {"solver_order": 0}),
        ("unipc", {"disable_corrector": None}),
        ("ddim", {"num_train_timesteps": 3}),
        ("ddim", {"trained_betas": [0.001] * 10}),
        ("pndm", {"steps_offset": 1000}),
        ("euler", {"timestep_spacing": "unknown"}),
    ],
)
def test_errors_a_scheduler_raises_late_are_found_early(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(IncompatibleScheduler, match=rf"^{SCHEDULERS[name].class_name}: \w+Error: "):
        fresh_scheduler(diffusers.EulerAncestralDiscreteScheduler.from_config({**BASE, **change}), name, 5)
    assert fresh_scheduler(diffusers.EulerAncestralDiscreteScheduler(**BASE), name, 5).config.beta_end == 0.012


def test_a_spacing_replaces_that_of_the_model_and_no_more() -> None:
    own = diffusers.EulerDiscreteScheduler(**BASE, use_exponential_sigmas=True)
    own.register_to_config(steps_offset=1)  # as the pipeline corrects it
    for name in ("euler_karras", "unipc_karras"):
        made = fresh_scheduler(own, name, 5).config
        assert (made.use_karras_sigmas, made.use_exponential_sigmas, made.use_beta_sigmas) == (True, False, False)
        assert (made.beta_end, made.steps_offset) == (0.012, 1 if name == "euler_karras" else 0)
    assert own.config.use_exponential_sigmas


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_a_distilled_models_schedulers_take_any_number_of_steps(name: str) -> None:
    for steps in (1, 50, 100):
        made = fresh_scheduler(diffusers.DDIMScheduler(**BASE), name, steps)
        made.set_timesteps(steps)
        assert len(made.timesteps) == steps and made.config.original_inference_steps == max(steps, 50)


def test_a_rehearsal_leaves_nothing_in_the_scheduler() -> None:
    own = diffusers.UniPCMultistepScheduler(**BASE)
    made = fresh_scheduler(own, "unipc", 5)
    assert made.lower_order_nums == 0 and made.step_index is None and made.last_sample is None
    assert made.model_outputs == [None, None] and own.step_index is None


@pytest.mark.parametrize(
    "config", [CONFIGS[name][1] for name in ("static", "dynamic", "linear", "terminal", "flow_karras")]
)
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_heun_goes_by_the_sigmas_of_euler(config: dict[str, Any], steps: int) -> None:
    more = {"mu": 0.8} if config.get("use_dynamic_shifting") else {}
    euler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    euler.set_timesteps(steps, **more)
    heun = FlowHeun.from_config(config)
    heun.set_timesteps(steps, **more)
    assert torch.equal(heun.sigmas.unique(), euler.sigmas.unique())
    assert torch.equal(heun.timesteps.unique(), euler.timesteps.unique())
    assert len(heun.timesteps) == 2 * steps - 1


def test_heun_shifts_its_sigmas_as_diffusers_does() -> None:
    own = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    ours = FlowHeun.from_config(FLOW)
    for scheduler in (own, ours):
        scheduler.set_timesteps(6)
    assert torch.equal(own.sigmas, ours.sigmas) and torch.equal(own.timesteps, ours.timesteps)

    dynamic = FlowHeun.from_config(DYNAMIC)
    dynamic.set_timesteps(6, mu=0.8)
    shifted = diffusers.FlowMatchHeunDiscreteScheduler(shift=float(np.exp(0.8)))
    shifted.sigma_min = 1 / 1000  # its class shifts this one too, before it shifts all
    shifted.set_timesteps(6)
    assert torch.allclose(dynamic.sigmas, shifted.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "calls, steps, order, expected",
    [
        (4, 4, 1, [1, 2, 3, 4]),
        (1, 1, 1, [1]),
        (5, 4, 1, [0, 1, 2, 3, 4]),  # PNDM
        (7, 4, 2, [0, 1, 1, 2, 2, 3, 4]),  # Heun
        (14, 5, 1, [0] * 9 + [1, 2, 3, 4, 5]),  # PNDM with Runge-Kutta steps
        (2, 4, 1, [1, 4]),  # fewer calls than steps
    ],
)
def test_progress_counts_steps_not_model_calls(calls: int, steps: int, order: int, expected: list[int]) -> None:
    assert [steps_done(call, calls, steps, order) for call in range(calls)] == expected
