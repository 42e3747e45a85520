"""The size of a model's weights, on the disk and in memory, from the headers of its files."""

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import NamedTuple

from weave.models.assets import Weights
from weave.models.components import ModelClass
from weave.models.files import Tensor
from weave.models.gguf import check_header
from weave.models.kept import kept_bytes

# Names in torch, by those in safetensors files.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
# A block that is more than this fraction of its component is split into its inner blocks, as in UNets.
_LARGEST_BLOCK = 1 / 16
_DEEPEST = 4
_BLOCK = re.compile(r"(?:^|\.)[0-9]+(?=\.)")


class Part(NamedTuple):
    """A component's tensors in its files: the number of their elements, and their dtypes."""

    numbers: int
    dtypes: tuple[str, ...]


class Size(NamedTuple):
    """The bytes of a component's weights in memory: of all of them, and of those that are on the device at the same
    time while the component is streamed, which are two blocks and everything outside blocks."""

    whole: int
    streamed: int

    def plus(self, other: "Size") -> "Size":
        """Both together."""
        return Size(self.whole + other.whole, self.streamed + other.streamed)


def measure(weights: Weights) -> Part:
    """Raises ModelFilesRefused."""
    tensors = list(_tensors(weights))
    dtypes = dict.fromkeys(_DTYPES.get(tensor.dtype, tensor.dtype) for _, tensor in tensors)
    return Part(sum(prod(tensor.shape) for _, tensor in tensors), tuple(dtypes))


def size_of(component: ModelClass, weights: Weights, dtype: str, *, keeps: bool = False) -> Size:
    """How much memory the weights take after they are loaded in `dtype`, one of the config's values. If the component
    `keeps` quantised weights, these stay quantised. Raises ModelFilesRefused."""
    sizes = {}
    for name, tensor in _tensors(weights):
        kept = kept_bytes(component, name, tensor) if keeps else None
        sizes[name] = _bytes(component, name, tensor, dtype) if kept is None else kept
    return size_in_blocks(sizes)


def size_in_blocks(sizes: Mapping[str, int]) -> Size:
    """`sizes` are the bytes of each tensor, by its name."""
    found = blocks(sizes)
    rest = found.pop("", 0)
    whole = sum(sizes.values())
    return Size(whole, min(whole, rest + 2 * max(found.values(), default=0)))


def blocks(sizes: Mapping[str, int]) -> dict[str, int]:
    """The bytes of each block of a component by the name of its module, such as transformer_blocks.0; under the empty
    name, those outside blocks. `sizes` are the bytes of each tensor, by its name."""
    return _split(sizes, 0, sum(sizes.values()) * _LARGEST_BLOCK, 0)


def _split(sizes: Mapping[str, int], start: int, most: float, depth: int) -> dict[str, int]:
    groups: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        found = _BLOCK.search(name, start)
        groups.setdefault(name[: found.end()] if found else "", {})[name] = size
    result: dict[str, int] = {}
    for name, group in groups.items():
        total = sum(group.values())
        inner = _split(group, len(name), most, depth + 1) if name and total > most and depth < _DEEPEST else {}
        # Not worth it if the numbered layers are only a small part of the block.
        if inner and total - inner.get("", 0) > total / 2:
            result[""] = result.get("", 0) + inner.pop("", 0)
            result |= inner
        else:
            result[name] = result.get(name, 0) + total
    return result


def _bytes(component: ModelClass, name: str, tensor: Tensor, dtype: str) -> int:
    """How many bytes of memory a tensor takes."""
    kept = dtype == "float16" and set(component.kept_in_float32) & set(name.split("."))
    return prod(tensor.shape) * (4 if dtype == "float32" or kept else 2)


def _tensors(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    headers = [check_header(file) for file in weights.files]
    if weights.names is not None:
        return iter([(name, headers[0][stored]) for name, stored in weights.names.items()])
    return iter([item for header in headers for item in header.items()])
