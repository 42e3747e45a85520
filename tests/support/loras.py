"""Files of LoRAs, and the merge that a test makes itself: in float64, into the pipeline of diffusers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

RANK = 2


class Spelling(NamedTuple):
    """How the keys of a file end, and whether layers have an alpha."""

    down: str
    up: str
    alpha: float | None = None


KOHYA = Spelling(".lora_down.weight", ".lora_up.weight", alpha=4.0)
PEFT = Spelling(".lora_A.weight", ".lora_B.weight")
DIFFUSERS = Spelling(".lora.down.weight", ".lora.up.weight")
OLD_DIFFUSERS = Spelling("_lora.down.weight", "_lora.up.weight")
ENCODERS_OF_DIFFUSERS = Spelling(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")


class Lora:
    """Matrices for layers of a pipeline of diffusers. `layers` gives for the beginning of a key the component and the
    layers that it stands for, separated by spaces."""

    def __init__(self, pipeline: Any, layers: Mapping[str, str], spelling: Spelling, *, seed: int = 0) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._changes: list[tuple[str, str, torch.Tensor]] = []
        generator = torch.Generator().manual_seed(seed)
        for name, words in layers.items():
            component, *parts = words.split()
            shapes = [getattr(pipeline, component).get_submodule(part).weight.shape for part in parts]
            up = _sixteenths(generator, sum(shape[0] for shape in shapes), RANK, *[1] * (len(shapes[0]) - 2))
            down = _sixteenths(generator, RANK, *shapes[0][1:])
            self.tensors |= {name + spelling.down: down, name + spelling.up: up}
            if spelling.alpha is not None:
                self.tensors[f"{name}.alpha"] = torch.tensor(spelling.alpha)
            scale = 1.0 if spelling.alpha is None else spelling.alpha / RANK
            whole = scale * torch.einsum("or,ri->oi", up.flatten(1).double(), down.flatten(1).double())
            for part, rows in zip(parts, whole.split([shape[0] for shape in shapes]), strict=True):
                self._changes.append((component, part, rows))

    def write(self, path: Path, metadata: dict[str, str] | None = None) -> Path:
        """As a file."""
        save_file(self.tensors, path, metadata)
        return path

    def merge(self, pipeline: Any, weight: float) -> None:
        """Into the pipeline's own weights, for good."""
        for component, layer, change in self._changes:
            own = getattr(pipeline, component).get_submodule(layer).weight
            own.data = (own.double() + weight * change.reshape(own.shape)).to(own.dtype)


def _sixteenths(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Multiples of 1/16 up to 1/4. Sums of their products are exact in float32, so they do not depend on the order."""
    return torch.randint(-4, 5, shape, generator=generator).float() / 16
