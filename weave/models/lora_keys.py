"""The keys of a LoRA's file, in the spellings of kohya, diffusers and peft: which tensors belong together, and how.

A LoRA changes a layer's weights to W + scale * (up @ down), where up and down are narrow matrices of one rank and scale
is alpha / rank. What is neither of these is refused: the other methods give other images if they are read as a LoRA.
"""

import json
from collections.abc import Mapping
from math import isfinite, prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from weave.models.configs import shown
from weave.models.files import Header, ModelFilesRefused, find_file, read_safetensors_header
from weave.models.pins import check_pins, pin_of

Role: TypeAlias = Literal["down", "up", "alpha"]

# What a key ends in. No ending is the end of another.
_ENDINGS: dict[str, Role] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
}
# What the keys of other methods have in them.
_OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "a Tucker decomposition",
    ".diff": "a difference of whole weights",
    ".bias": "a change of biases",
}
_MATRIX = ("F16", "BF16", "F32", "F64")
_DTYPES: dict[Role, tuple[str, ...]] = {"down": _MATRIX, "up": _MATRIX, "alpha": (*_MATRIX, "I16", "I32", "I64")}
# Where diffusers keeps the settings of peft, and those that would change the scale in another way.
_SETTINGS = "lora_adapter_metadata"
_OTHER_SCALES = ("use_rslora", "use_dora", "alpha_pattern")


class LoraHeader(NamedTuple):
    """The header of a LoRA's file. `metadata` is unchecked."""

    tensors: Header
    metadata: Any = None


class Matrices(NamedTuple):
    """The keys of one layer's tensors. `name` is what they begin with, `rank` their number of narrow rows."""

    name: str
    down: str
    up: str
    alpha: str | None
    rank: int


def read_header(path: Path) -> LoraHeader:
    """Raises ModelFilesRefused."""
    return LoraHeader(*read_safetensors_header(find_file(path.parent, path.name), path.name))


def is_lora(header: LoraHeader) -> bool:
    """Whether the tensors are those of a LoRA, for whatever model."""
    try:
        return bool(matrices(header))
    except ModelFilesRefused:
        return False


def check_file(path: Path, sha256: str | None) -> None:
    """Without a model: whether it is the file of a LoRA. Raises ModelFilesRefused."""
    check_pins(path.parent, pin_of(path, sha256))
    header = read_header(path)
    try:
        matrices(header)
        common_alphas(header)
    except ModelFilesRefused as error:
        raise ModelFilesRefused(f"{path.name}: {error}") from None


def matrices(header: LoraHeader) -> list[Matrices]:
    """Raises ModelFilesRefused, with the key, unless each tensor is one of a LoRA's and none lacks its counterpart."""
    found: dict[str, dict[Role, str]] = {}
    for key, tensor in header.tensors.items():
        name, role = _split(key)
        if tensor.dtype not in _DTYPES[role]:
            known = ", ".join(_DTYPES[role])
            raise ModelFilesRefused(f"{shown(key)} is of {tensor.dtype}, expected one of {known}")
        if found.setdefault(name, {}).setdefault(role, key) != key:
            raise ModelFilesRefused(f"{shown(key)} and {shown(found[name][role])} are of one layer")
    if not found:
        raise ModelFilesRefused("the file has no tensors")
    return [_matrices(name, keys, header.tensors) for name, keys in sorted(found.items())]


def _split(key: str) -> tuple[str, Role]:
    for part, method in _OTHER_METHODS.items():
        if part in key:
            raise ModelFilesRefused(f"{shown(key)} belongs to {method}, which is not supported")
    for ending, role in _ENDINGS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), role
    raise ModelFilesRefused(f"{shown(key)} is not a known key of a LoRA")


def _matrices(name: str, keys: Mapping[Role, str], tensors: Header) -> Matrices:
    for role in ("down", "up"):
        if role not in keys:
            raise ModelFilesRefused(f"{shown(next(iter(keys.values())))} lacks its counterpart ({role})")
    alpha, rank = keys.get("alpha"), next(iter(tensors[keys["down"]].shape), 0)
    if rank == 0:
        raise ModelFilesRefused(f"{shown(keys['down'])} has no rows")
    if alpha is not None and prod(tensors[alpha].shape) != 1:
        raise ModelFilesRefused(f"{shown(alpha)} is not a single number")
    return Matrices(name, keys["down"], keys["up"], alpha, rank)


def common_alphas(header: LoraHeader) -> dict[str, float]:
    """The alpha of layers that have none of their own, by the component that the settings in the file name; "" if they
    name none. Raises ModelFilesRefused."""
    text = header.metadata.get(_SETTINGS, "{}") if isinstance(header.metadata, dict) else "{}"
    try:
        settings = json.loads(text)
        items = [(*key.rpartition("."), value) for key, value in settings.items()]
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ModelFilesRefused(f"{_SETTINGS} is {shown(text)}, expected an object in JSON") from None
    alphas = {}
    for component, _, key, value in items:
        if key in _OTHER_SCALES and value:
            raise ModelFilesRefused(f"{_SETTINGS} has {key} {shown(value)}, which is not supported")
        if key == "lora_alpha":
            if type(value) not in (int, float) or not isfinite(value):
                raise ModelFilesRefused(f"{_SETTINGS} has {key} {shown(value)}, expected a number")
            alphas[component] = float(value)
    return alphas
