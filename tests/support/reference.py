"""What diffusers itself generates from the same files: the image that the daemon's must equal."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from tests.support import tiny_models
from tests.support.daemon import Daemon
from weave.gpu_worker.classes import component_class, pipeline_class
from weave.gpu_worker.pipelines import adapter_of
from weave.models.families import FAMILIES
from weave.models.schedulers import SCHEDULERS as OFFERED
from weave.models.schedulers import name_of
from weave.protocol.inputs import TEXT_TO_IMAGE

# Those that generate images from text alone.
FROM_TEXT = tuple(name for name, family in FAMILIES.items() if TEXT_TO_IMAGE in family.tasks)
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "pndm": diffusers.PNDMScheduler,
    "edm_euler": diffusers.EDMEulerScheduler,
    "edm_dpmpp_2m": diffusers.EDMDPMSolverMultistepScheduler,
    "flow_euler": diffusers.FlowMatchEulerDiscreteScheduler,
    "flow_heun": diffusers.FlowMatchHeunDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
    "tcd": diffusers.TCDScheduler,
}


def fitting(family: str, own: str | None = None) -> list[str]:
    """The family's schedulers for a model whose own one is of the class `own`, or else of the default's."""
    known = FAMILIES[family]
    kind = OFFERED[name_of(own) if own else known.defaults.scheduler].kind
    return [name for name in known.schedulers if OFFERED[name].kind == kind]


SPACINGS = ("karras", "exponential", "beta")


@contextmanager
def one_thread() -> Iterator[None]:
    """torch in this process, like a daemon with `threads = 1`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def served_like_here(tables: str, dtype: str = "auto") -> Iterator[Daemon]:
    """A daemon with the config's `tables` and as many threads as this process meanwhile: how sums are split between
    threads shows in the last bits."""
    daemon = Daemon(f'[device]\ndevice = "cpu"\nthreads = 1\ndtype = "{dtype}"\n{tables}')
    with one_thread():
        try:
            yield daemon.wait_until_serving()
        finally:
            daemon.stop()


def make_small_model(family: str, folder: Path) -> Path:
    """The smallest model of that family."""
    return tiny_models.make_small_sd(folder) if family in ("sd1", "sd2") else tiny_models.make(family, folder)


def write_index(family: str, folder: Path, **data: Any) -> None:
    """The model_index.json that save_pretrained would have written, with `data` added."""
    known = FAMILIES[family]
    index = {"_class_name": known.pipeline, "_diffusers_version": diffusers.__version__, **data}
    for part, component in known.components.items():
        named = [component.library, component.class_name]
        index[part] = named if (folder / part).is_dir() else [None, None]
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    index["scheduler"] = ["diffusers", config["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))


def arguments(family: str, negative: str | None, *, steps: int, scale: float, side: int = 64) -> dict[str, Any]:
    """Of the pipeline's call. Flux has two scales: with a negative prompt, the one of the request sets both."""
    given: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale, "width": side, "height": side}
    if family.startswith("qwen-image"):
        given["true_cfg_scale"] = given.pop("guidance_scale")
        negative = negative or " "
    if negative is not None:
        given["negative_prompt"] = negative
        if family == "flux":
            given["true_cfg_scale"] = scale
    return given


class Reference:
    """The pipeline that its own from_pretrained makes of a folder with a model_index.json."""

    def __init__(self, family: str, folder: Path, dtype: str = "float32") -> None:
        known = FAMILIES[family]
        given: dict[str, Any] = {part: None for part in known.optional if not (folder / part).is_dir()}
        if family in ("sd1", "sd2"):
            given["safety_checker"] = None
        if family == "krea2":
            given["transformer"] = krea2_transformer(folder, getattr(torch, dtype))
        load = getattr(diffusers, known.pipeline).from_pretrained
        if "processor" in known.components:
            given["processor"] = qwen_processor(folder / "processor")
        self.pipeline = load(str(folder), torch_dtype=getattr(torch, dtype), local_files_only=True, **given)
        if family == "sd3":
            # Without accelerate its class leaves a part in float32, and then fails.
            self.pipeline.transformer.to(getattr(torch, dtype))
        self.pipeline.set_progress_bar_config(disable=True)
        self.own = self.pipeline.scheduler

    def scheduler(self, name: str, **changed: Any) -> Any:
        """The model's own where it has that class, else another class's from_config."""
        base, _, spacing = name.rpartition("_")
        if spacing in SPACINGS:
            made = self.scheduler(base, **changed)
            config = {key: value for key, value in made.config.items() if key != "_use_default_values"}
            return type(made).from_config(config | {f"use_{other}_sigmas": other == spacing for other in SPACINGS})
        if isinstance(self.own, SCHEDULERS[name]) and not changed:
            return self.own
        if name == "pndm":
            changed = {"skip_prk_steps": True, **changed}
        return SCHEDULERS[name].from_config(self.own.config, **changed)

    def generate(self, prompt: str, scheduler: Any, generator: torch.Generator, **arguments: Any) -> np.ndarray:
        """The pixels."""
        self.pipeline.scheduler = scheduler
        with torch.inference_mode():
            if isinstance(self.pipeline, diffusers.Flux2KleinPipeline) and "negative_prompt" in arguments:
                negative, _ = self.pipeline.encode_prompt(arguments.pop("negative_prompt"))
                arguments["negative_prompt_embeds"] = negative
            return np.asarray(self.pipeline(prompt=prompt, generator=generator, **arguments).images[0])


def qwen_processor(folder: Path) -> Any:
    """As its from_pretrained makes it, without a video processor, which needs torchvision."""
    image_processor = transformers.Qwen2VLImageProcessorPil.from_pretrained(str(folder))
    tokenizer = transformers.Qwen2Tokenizer.from_pretrained(str(folder))
    with patch.object(transformers.Qwen2VLProcessor, "check_argument_for_proper_class"):
        return transformers.Qwen2VLProcessor(image_processor, tokenizer)


def krea2_transformer(folder: Path, dtype: torch.dtype) -> Any:
    """Its from_pretrained does the same, but only with accelerate."""
    made = diffusers.Krea2Transformer2DModel
    model = made.from_config(made.load_config(folder / "transformer"))
    model.load_state_dict(load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    for name, parameter in model.named_parameters():
        if not any(kept in name.split(".") for kept in made._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def assembled(family: str, model: Path, dtype: torch.dtype) -> Any:
    """A pipeline of a folder without model_index.json: each component by its own from_pretrained, cast as a whole."""
    known = FAMILIES[family]
    components = {}
    for part, component in known.components.items():
        load, folder = component_class(component).from_pretrained, str(model / part)
        if part.startswith("tokenizer"):
            components[part] = load(folder)
        elif family == "krea2" and part == "transformer":
            components[part] = krea2_transformer(model, dtype)
        elif component.library == "diffusers":
            components[part] = load(folder).float().to(dtype)
        else:
            components[part] = load(folder, dtype=dtype)  # keeps in float32 what the class wants there
        if isinstance(components[part], torch.nn.Module):
            # Copy it out of the mapped file: CPU kernels differ where an address is not aligned, and in a mapped file
            # the alignment depends on the header's length. That alone can change a pixel's value by one.
            components[part]._apply(torch.clone)
    name = json.loads((model / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    scheduler = getattr(diffusers, name).from_pretrained(str(model / "scheduler"))
    pipeline = pipeline_class(known)(scheduler=scheduler, **components, **known.fixed)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generated(pipeline: Any, family: str) -> np.ndarray[Any, Any]:
    """An image of 64 by 64 pixels in two steps; with a reference, where the family needs one."""
    adapter, image = adapter_of(family), Image.new("RGB", (64, 64), "red")
    with torch.inference_mode():
        result = pipeline(
            **adapter.call_arguments(("a red circle",), "", 5.0),
            **({} if family in FROM_TEXT else {"image": image}),
            width=64,
            height=64,
            num_inference_steps=2,
            generator=torch.Generator("cpu").manual_seed(1),
            output_type="pil",
        )
    return np.asarray(result.images[0].convert("RGB"))
