"""Which layers of a model the tensors of a LoRA belong to.

Files name layers as diffusers does or as the model's authors did, with dots or with underscores, after one of many
prefixes. All of these names are made here from the model's own layers, so a key either names a layer exactly or is
refused. diffusers has converters of keys, which replace parts of text: they drop keys that they do not expect, fit some
models of one size only, and know no original names for Stable Diffusion 3.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from weave.models.components import T5_ENCODER
from weave.models.configs import shown
from weave.models.family import Family
from weave.models.files import Header, ModelFilesRefused
from weave.models.lora_keys import LoraHeader, Matrices, common_alphas, matrices

Shape: TypeAlias = tuple[int, ...]
# The shapes of the weights that a LoRA may change, by component and layer.
Layers: TypeAlias = Mapping[str, Mapping[str, Shape]]

_OF_DENOISER = ("lora_unet_", "lora_transformer_", "base_model.model.", "diffusion_model.")
_OF_CLIP = (
    ("lora_te_", "lora_te1_", "text_encoders.clip_l.transformer."),
    ("lora_te2_", "text_encoders.clip_g.transformer."),
)
_OF_T5 = ("lora_te3_", "text_encoders.t5xxl.transformer.")
# What names of layers end in, and what older files of diffusers have in its place.
_OLDER = {
    "_to_out_0": "_to_out",
    "_q_proj": "_to_q",
    "_k_proj": "_to_k",
    "_v_proj": "_to_v",
    "_out_proj": "_to_out",
}


class Patch(NamedTuple):
    """Add scale * (up[rows] @ down) to the weights of one layer. `down`, `up` and `alpha` are keys in the file. scale
    is alpha / rank, or 1 without an alpha, which may also be the file's `common_alpha`."""

    component: str
    layer: str
    rows: slice
    down: str
    up: str
    rank: int
    alpha: str | None
    common_alpha: float | None


def patches(header: LoraHeader, family: Family, layers: Layers, config: Mapping[str, Any]) -> list[Patch]:
    """`header` is a LoRA's, `config` that of the model's denoiser. Raises ModelFilesRefused, with the key."""
    prefixes, names, alphas = _prefixes(family), _names(family, layers, config), common_alphas(header)
    if "" in alphas:
        alphas[family.denoiser] = alphas[""]
    found: dict[tuple[str, str], Patch] = {}
    for tensors in matrices(header):
        prefix, component = next(pair for pair in prefixes if tensors.name.startswith(pair[0]))
        parts = names.get((component, _underscored(tensors.name.removeprefix(prefix))))
        if parts is None:
            raise ModelFilesRefused(f"{shown(tensors.down)} is for a layer that the model does not have")
        shapes = {layer: layers[component][layer] for layer in parts}
        _check_shapes(header.tensors, tensors, shapes)
        for layer, rows in _rows(shapes):
            common = alphas.get(component)
            patch = Patch(component, layer, rows, tensors.down, tensors.up, tensors.rank, tensors.alpha, common)
            if (other := found.setdefault((component, layer), patch)) is not patch:
                raise ModelFilesRefused(f"{shown(patch.down)} and {shown(other.down)} are of one layer")
    return list(found.values())


def _prefixes(family: Family) -> list[tuple[str, str]]:
    """Each prefix with its component. The last one is empty: such names are the denoiser's."""
    found = dict.fromkeys((*_OF_DENOISER, f"{family.denoiser}."), family.denoiser)
    encoders = [part for part in family.components if part.startswith("text_encoder")]
    for number, part in enumerate(encoders):
        own = _OF_T5 if family.components[part] is T5_ENCODER else _OF_CLIP[number]
        found |= dict.fromkeys((*own, f"{part}."), part)
    return [*found.items(), ("", family.denoiser)]


def _names(family: Family, layers: Layers, config: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """The layers by component and name, with underscores: several where the original layer is divided."""
    found: dict[tuple[str, str], list[str]] = {}
    for original, layer in family.original_names(layers[family.denoiser], config):
        found.setdefault((family.denoiser, _underscored(original)), []).append(layer)
    for component, shapes in layers.items():
        for layer in shapes:
            name = _underscored(layer)
            found[component, name] = [layer]
            for ending, older in _OLDER.items():
                if name.endswith(ending):
                    found.setdefault((component, name.removesuffix(ending) + older), [layer])
    return found


def _underscored(name: str) -> str:
    """CLIP's layers are in text_model, or were in older versions of transformers."""
    return name.replace(".processor.", ".").replace(".", "_").removeprefix("text_model_")


def _check_shapes(tensors: Header, keys: Matrices, shapes: Mapping[str, Shape]) -> None:
    first = next(iter(shapes.values()))
    rows = sum(shape[0] for shape in shapes.values())
    for key, needed in ((keys.down, (keys.rank, *first[1:])), (keys.up, (rows, keys.rank))):
        shape = tensors[key].shape
        if _without_ones(shape) != _without_ones(needed):
            raise ModelFilesRefused(f"{shown(key)} is of shape {list(shape)}, expected {list(needed)}")


def _without_ones(shape: Shape) -> Shape:
    """Without those at the end: a convolution of one pixel is a matrix, and files have it as either."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _rows(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, slice]]:
    begin = 0
    for layer, shape in shapes.items():
        yield layer, slice(begin, begin + shape[0])
        begin += shape[0]
