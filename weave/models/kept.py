"""Which weights may stay in the form of their file, and what they take in memory.

Only matrices of layers do, of the components that are large; what else is stored in few bits is computed up when the
model is loaded.
"""

from math import prod

from weave.models.components import ModelClass
from weave.models.files import Tensor
from weave.models.gguf import BLOCKS, UNPACKED
from weave.models.single_files import DENOISERS

# In safetensors files. A row's scale is a number in float32.
_FP8 = ("F8_E4M3", "F8_E5M2")
_BYTES_OF_SCALE = 4
# Tables of vectors, from which an encoder takes a row for each token, and layers that may be one with such a table.
_TABLES = ("embed_tokens.weight", "shared.weight", "lm_head.weight")


def may_keep(part: str, component: ModelClass) -> bool:
    """Whether the component's layers may keep their weights in the form of the file."""
    return part in DENOISERS or component.is_large


def stays(component: ModelClass, name: str) -> bool:
    """Whether the matrix `name` may, in a component that may_keep(). Not those that the libraries cast to float32."""
    in_float32 = set(component.kept_in_float32) & set(name.split("."))
    return name.endswith(".weight") and not name.endswith(_TABLES) and not in_float32


def kept_bytes(component: ModelClass, name: str, tensor: Tensor) -> int | None:
    """What a tensor takes in memory if it is kept; None if it is not. An estimate where a matrix is no layer's."""
    if len(tensor.shape) != 2 or not stays(component, name):
        return None
    if tensor.dtype in _FP8:
        numbers = prod(tensor.shape)
        return numbers + _BYTES_OF_SCALE * min(numbers, tensor.shape[0])
    if tensor.dtype in BLOCKS and tensor.dtype not in UNPACKED:
        block = BLOCKS[tensor.dtype]
        return prod(tensor.shape) // block.numbers * block.bytes
    return None
