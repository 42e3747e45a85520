"""What plain diffusers makes of the same files: the right picture, to compare with."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from weave.gpu_worker.classes import component_class, pipeline_class
from weave.gpu_worker.pipelines import adapter_of
from weave.models.families import FAMILIES


def plain_pipeline(family: str, model: Path, dtype: torch.dtype) -> Any:
    """Each component by the library's own from_pretrained, cast as a whole."""
    known = FAMILIES[family]
    components = {}
    for part, component in known.components.items():
        load, folder = component_class(component).from_pretrained, str(model / part)
        if part.startswith("tokenizer"):
            components[part] = load(folder)
        elif component.library == "diffusers":
            components[part] = load(folder).float().to(dtype)
        else:
            components[part] = load(folder, dtype=dtype)  # keeps in float32 what the class wants there
        if isinstance(components[part], torch.nn.Module):
            # Out of the mapped file: CPU kernels differ where an address is not aligned, and in a mapped file that is
            # up to the length of its header. That alone can change a value of a pixel by one.
            components[part]._apply(torch.clone)
    name = json.loads((model / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    scheduler = getattr(diffusers, name).from_pretrained(str(model / "scheduler"))
    pipeline = pipeline_class(known)(scheduler=scheduler, **components, **known.fixed)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: Any, family: str) -> np.ndarray[Any, Any]:
    """A picture of 64 by 64 in two steps."""
    with torch.inference_mode():
        result = pipeline(
            **adapter_of(family).call_arguments(("a red circle",), "", 5.0),
            width=64,
            height=64,
            num_inference_steps=2,
            generator=torch.Generator("cpu").manual_seed(1),
            output_type="pil",
        )
    return np.asarray(result.images[0].convert("RGB"))
