"""The size of a model's weights, on the disk and in memory, from the headers of its files."""

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from weave.models.assets import Weights
from weave.models.components import ModelClass
from weave.models.files import Tensor, check_safetensors_header

# Names in torch, by those in safetensors files.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
# An estimate of what is needed besides the weights: the GPU's context, and the intermediate results of one image of the
# family's default size.
ALLOWANCE = 2_500_000_000


class Part(NamedTuple):
    """A component's tensors: how many numbers they hold, and in which dtypes. `in_float32` of them are kept so where
    the model is loaded in float16."""

    numbers: int
    in_float32: int
    dtypes: tuple[str, ...]


def measure(component: ModelClass, weights: Weights) -> Part:
    """Raises ModelFilesRefused."""
    headers = [check_safetensors_header(file) for file in weights.files]
    tensors = [item for header in headers for item in header.items()]
    if weights.names is not None:
        tensors = [(name, headers[0][stored]) for name, stored in weights.names.items()]
    dtypes = dict.fromkeys(_DTYPES.get(tensor.dtype, tensor.dtype) for _, tensor in tensors)
    kept = [tensor for name, tensor in tensors if set(component.kept_in_float32) & set(name.split("."))]
    return Part(_numbers(tensor for _, tensor in tensors), _numbers(kept), tuple(dtypes))


def bytes_in(parts: Iterable[Part], dtype: str) -> int:
    """What the weights take once they are loaded in `dtype`, one of those that the config may name."""
    return sum(_bytes(part, dtype) for part in parts)


def _bytes(part: Part, dtype: str) -> int:
    kept = {"float32": part.numbers, "float16": part.in_float32}.get(dtype, 0)
    return 2 * (part.numbers + kept)


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(prod(tensor.shape) for tensor in tensors)
