"""What diffusers draws by itself, in this process: the picture that the daemon's must equal."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from tests.support import tiny_models
from weave.models.families import FAMILIES

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "pndm": diffusers.PNDMScheduler,
    "flow_euler": diffusers.FlowMatchEulerDiscreteScheduler,
    "flow_heun": diffusers.FlowMatchHeunDiscreteScheduler,
}


@contextmanager
def one_thread() -> Iterator[None]:
    """torch in this process, like a daemon with `threads = 1`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_small_model(family: str, folder: Path) -> Path:
    """The smallest there is of that family."""
    return tiny_models.make_small_sd(folder) if family in ("sd1", "sd2") else tiny_models.make(family, folder)


def write_index(family: str, folder: Path, **data: Any) -> None:
    """The model_index.json that save_pretrained would have written, with `data` beside its components."""
    known = FAMILIES[family]
    index = {"_class_name": known.pipeline, "_diffusers_version": diffusers.__version__, **data}
    for part, component in known.components.items():
        named = [component.library, component.class_name]
        index[part] = named if (folder / part).is_dir() else [None, None]
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    index["scheduler"] = ["diffusers", config["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))


def arguments(family: str, negative: str | None, *, steps: int, scale: float, side: int = 64) -> dict[str, Any]:
    """Of the pipeline's call. Flux has two scales; the request has one, and with a negative prompt it is both."""
    given: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale, "width": side, "height": side}
    if negative is not None:
        given["negative_prompt"] = negative
        if family == "flux":
            given["true_cfg_scale"] = scale
    return given


class Plain:
    """A pipeline of a folder as its own from_pretrained makes it."""

    def __init__(self, family: str, folder: Path, dtype: str = "float32") -> None:
        known = FAMILIES[family]
        absent = {part: None for part in known.optional if not (folder / part).is_dir()}
        if family in ("sd1", "sd2"):
            absent["safety_checker"] = None
        load = getattr(diffusers, known.pipeline).from_pretrained
        self.pipeline = load(str(folder), torch_dtype=getattr(torch, dtype), local_files_only=True, **absent)
        if family == "sd3":
            # Without accelerate its class leaves a part in float32, and then fails.
            self.pipeline.transformer.to(getattr(torch, dtype))
        self.pipeline.set_progress_bar_config(disable=True)
        self.own = self.pipeline.scheduler

    def scheduler(self, name: str, **changed: Any) -> Any:
        """One of another class as people make it; of the model's own it is the model's own."""
        if isinstance(self.own, SCHEDULERS[name]) and not changed:
            return self.own
        if name == "pndm":
            changed = {"skip_prk_steps": True, **changed}
        return SCHEDULERS[name].from_config(self.own.config, **changed)

    def draw(self, prompt: str, scheduler: Any, generator: torch.Generator, **arguments: Any) -> np.ndarray:
        """The pixels."""
        self.pipeline.scheduler = scheduler
        with torch.inference_mode():
            drawn = self.pipeline(prompt, generator=generator, **arguments).images[0]
        return np.asarray(drawn)
