"""Which weights may stay quantised in memory, as in their file, and how much memory they take.

Only the matrices of linear layers do, in large components. Other quantised tensors are converted to the dtype when the
model is loaded.
"""

from math import prod

from weave.models.components import ModelClass
from weave.models.files import Tensor
from weave.models.gguf import BLOCKS, UNPACKED
from weave.models.single_files import DENOISERS

# In safetensors files. Each row has a scale in float32.
_FP8 = ("F8_E4M3", "F8_E5M2")
_BYTES_OF_SCALE = 4
# Embedding tables, from which an encoder takes a row for each token, and layers that may share such a table.
_TABLES = ("embed_tokens.weight", "shared.weight", "lm_head.weight")


def may_keep(part: str, component: ModelClass) -> bool:
    """Whether the component's layers may keep their weights quantised."""
    return part in DENOISERS or component.is_large


def stays(component: ModelClass, name: str) -> bool:
    """Whether the matrix `name` may stay quantised, in a component that may_keep(); no matrix that the libraries cast
    to float32 does."""
    in_float32 = set(component.kept_in_float32) & set(name.split("."))
    return name.endswith(".weight") and not name.endswith(_TABLES) and not in_float32


def kept_bytes(component: ModelClass, name: str, tensor: Tensor) -> int | None:
    """How many bytes of memory a tensor takes if it stays quantised; None if it does not. An estimate if the matrix is
    not a linear layer's."""
    if len(tensor.shape) != 2 or not stays(component, name):
        return None
    if tensor.dtype in _FP8:
        numbers = prod(tensor.shape)
        return numbers + _BYTES_OF_SCALE * min(numbers, tensor.shape[0])
    if tensor.dtype in BLOCKS and tensor.dtype not in UNPACKED:
        block = BLOCKS[tensor.dtype]
        return prod(tensor.shape) // block.numbers * block.bytes
    return None
