"""A job's LoRAs are merged into the model's weights, which are the model's own again afterwards, bit for bit.

Merged weights cost nothing at each step. The sum is computed in float32 and rounded once. Subtracting it again would
not give the same bits, so the weights are kept. Quantised weights do not change: LoRAs are added each time that these
are converted to the dtype, which gives the same sums.
"""

import contextlib
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from weave.config.child_configs import WorkerLora, WorkerModel
from weave.gpu_worker.device import has_room
from weave.gpu_worker.kept import KeptLinear
from weave.gpu_worker.placement import Placement
from weave.models.configs import shown
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.models.files import ModelFilesRefused
from weave.models.lora_keys import read_header
from weave.models.lora_layers import Layers, patches
from weave.models.pins import pin_of, pinned
from weave.protocol.loras import RequestedLora


class LoraRefused(Exception):
    """A LoRA cannot be used with the model. The message has its ID and the reason."""


class _Product(NamedTuple):
    """scale * (up @ down), which is added to the weights of one layer."""

    up: torch.Tensor
    down: torch.Tensor
    scale: float

    def on(self, device: torch.device) -> "_Product":
        """The same, on `device` and in float32."""
        up, down = (matrix.to(device, torch.float32) for matrix in (self.up, self.down))
        return _Product(up, down, self.scale)

    def add_to(self, weight: torch.Tensor, rows: slice = slice(None)) -> None:
        """`weight` has these rows of the layer's weights. It is contiguous and in float32."""
        up, down, scale = self.on(weight.device)
        weight.view(len(up[rows]), -1).addmm_(up[rows], down, alpha=scale)


_Products = dict[tuple[str, str], list[_Product]]


@contextlib.contextmanager
def merged(
    pipeline: Any, model: WorkerModel, requested: tuple[RequestedLora, ...], placement: Placement
) -> Iterator[None]:
    """In this context the weights are those with the LoRAs. Raises LoraRefused, and what running out of memory raises;
    the weights are then unchanged."""
    products = _read_all(pipeline, model, requested)
    layers = {place: getattr(pipeline, place[0]).get_submodule(place[1]) for place in products}
    in_few_bits = {place: layer for place, layer in layers.items() if isinstance(layer, KeptLinear)}
    weights = {place: placement.stored(layer) for place, layer in layers.items() if place not in in_few_bits}
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    room = has_room(placement.device, sum(weight.nbytes for weight in weights.values()))
    try:
        with torch.no_grad():
            for place, layer in in_few_bits.items():
                layer.changes = tuple(product.on(placement.device).add_to for product in products[place])
            for place, weight in weights.items():
                kept.append((weight, weight.clone() if room else weight.to("cpu", copy=True)))
                total = weight.to(placement.device).float().contiguous()
                for product in products[place]:
                    product.add_to(total)
                weight.copy_(total)
        yield
    finally:
        for layer in in_few_bits.values():
            layer.changes = ()
        with torch.no_grad():
            for weight, own in kept:
                weight.copy_(own)
        for place in weights:
            placement.send(layers[place])  # the copy on the device still has the LoRAs


def _read_all(pipeline: Any, model: WorkerModel, requested: tuple[RequestedLora, ...]) -> _Products:
    family, files = FAMILIES[model.offer.family], {lora.offer.id: lora for lora in model.loras}
    layers = _layers(pipeline, family) if requested else {}
    products: _Products = {}
    for wanted in requested:
        try:
            for place, product in _read(pipeline, family, layers, files[wanted.id], wanted.weight):
                products.setdefault(place, []).append(product)
        except (ModelFilesRefused, OSError, SafetensorError) as error:
            raise LoraRefused(f"{wanted.id}: {error}") from None
    return products


def _layers(pipeline: Any, family: Family) -> Layers:
    parts = [family.denoiser, *(part for part in family.components if part.startswith("text_encoder"))]
    loaded = {part: getattr(pipeline, part) for part in parts if getattr(pipeline, part) is not None}
    return {
        part: {
            name: layer.shape if isinstance(layer, KeptLinear) else tuple(layer.weight.shape)
            for name, layer in component.named_modules()
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d | KeptLinear)
        }
        for part, component in loaded.items()
    }


def _read(
    pipeline: Any, family: Family, layers: Layers, lora: WorkerLora, weight: float
) -> Iterator[tuple[tuple[str, str], _Product]]:
    """Raises ModelFilesRefused, OSError, SafetensorError."""
    path = Path(lora.path)
    with pinned(path.parent, pin_of(path, lora.sha256)):
        header = read_header(path)
        with safe_open(path, framework="pt") as file:
            for patch in patches(header, family, layers, getattr(pipeline, family.denoiser).config):
                alpha = patch.common_alpha if patch.alpha is None else float(file.get_tensor(patch.alpha).item())
                scale = 1.0 if alpha is None else alpha / patch.rank
                if not isfinite(scale):
                    raise ModelFilesRefused(f"{shown(patch.alpha)} is not finite")
                # Copies, since a mapped file may change later.
                up = file.get_tensor(patch.up)[patch.rows].reshape(-1, patch.rank).clone()
                down = file.get_tensor(patch.down).reshape(patch.rank, -1).clone()
                yield (patch.component, patch.layer), _Product(up, down, scale * weight)
