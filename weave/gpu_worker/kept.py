"""Linear layers whose weights stay quantised in memory, as in their file, and are converted to the dtype at each use.

The libraries load such a model with placeholder tensors of the weights' shape and dtype, which take no memory. Then the
layers that got them are replaced. Converted weights are rounded as if they had been loaded in the dtype, so images are
the same, bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch.nn import functional

from weave.gpu_worker.gguf_blocks import rows_of
from weave.models.gguf import BLOCKS

# Adds to some rows of a layer's weights in place, in float32.
Change: TypeAlias = Callable[[torch.Tensor, slice], None]

# How many weights are converted at a time. More would only take more memory for the temporary float32 values.
_AT_ONCE = 1 << 22
_FP8_MAX = 448.0  # of float8_e4m3fn
# torch._scaled_mm takes matrices whose sides are multiples of this.
_SCALED_MULTIPLE = 16


class Kept(NamedTuple):
    """A quantised matrix. In fp8 `data` has the matrix's shape, and `scale` is a float32 column with a factor for each
    row. In blocks of a GGUF file, of the type `kind`, `data` has the bytes of each row."""

    data: torch.Tensor
    scale: torch.Tensor | None
    kind: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        rows, columns = self.data.shape
        if self.kind is None:
            return rows, columns
        block = BLOCKS[self.kind]
        return rows, columns // block.bytes * block.numbers

    def rows(self, taken: slice) -> torch.Tensor:
        """The `taken` rows of the matrix, in float32."""
        if self.kind is not None:
            return rows_of(self.kind, self.data[taken])
        assert self.scale is not None
        return self.data[taken].float().mul_(self.scale[taken])

    def full(self, dtype: torch.dtype, changes: Sequence[Change] = ()) -> torch.Tensor:
        """The matrix in `dtype`. It is rounded once, and again after the `changes`."""
        rows, columns = self.shape
        found = torch.empty(rows, columns, dtype=dtype, device=self.data.device)
        step = max(1, _AT_ONCE // max(1, columns))
        for begin in range(0, rows, step):
            taken = slice(begin, min(begin + step, rows))
            found[taken] = self.rows(taken)
            if changes:
                changed = found[taken].float()
                for change in changes:
                    change(changed, taken)
                found[taken] = changed
        return found

    def clone(self) -> "Kept":
        """With memory of its own."""
        return Kept(self.data.clone(), None if self.scale is None else self.scale.clone(), self.kind)


class KeptLinear(torch.nn.Module):  # type: ignore[misc]
    """Replaces a torch.nn.Linear. `changes` add a job's LoRAs. `in_fp8`: it multiplies in fp8 if the GPU can, which is
    less exact."""

    def __init__(self, kept: Kept, bias: torch.nn.Parameter | None, dtype: torch.dtype, *, in_fp8: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = kept.shape
        self.bias = bias
        self.changes: tuple[Change, ...] = ()
        self._dtype = dtype
        self._format, self._kind = kept.data.dtype, kept.kind
        self._in_fp8 = in_fp8 and kept.data.dtype == torch.float8_e4m3fn
        # As bytes, so that code that casts or checks a model's floating-point parameters ignores them.
        self.data = _as_bytes(kept.data)
        self.scale = None if kept.scale is None else _as_bytes(kept.scale)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weights."""
        return self.kept.shape

    @property
    def kept(self) -> Kept:
        """The weights as they are stored."""
        scale = None if self.scale is None else self.scale.view(torch.float32)
        return Kept(self.data.view(self._format), scale, self._kind)

    @property
    def weight(self) -> torch.Tensor:
        """The weights, converted to the dtype at each use."""
        return self.kept.full(self._dtype, self.changes)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """As torch.nn.Linear's."""
        if self._in_fp8 and not self.changes and _multiplies_fp8(values, self.out_features):
            return _multiplied(values, self.kept, self.bias)
        return functional.linear(values, self.weight, self.bias)


class StandIns:
    """Placeholder tensors that the libraries load instead of `kept`, by the class's names."""

    def __init__(self, kept: Mapping[str, Kept], dtype: torch.dtype) -> None:
        self.tensors = {name: torch.zeros((), dtype=dtype).expand(it.shape) for name, it in kept.items()}
        # The library renames some tensors, but not their memory.
        self._names = {tensor.data_ptr(): name for name, tensor in self.tensors.items()}
        self._kept = kept
        self._dtype = dtype

    def replace(self, model: torch.nn.Module, *, in_fp8: bool) -> set[str]:
        """Replace the placeholders in the model by the `kept` weights. Returns the names that the model does not
        have."""
        left = set(self._kept)
        for module_name, module in list(model.named_modules()):
            for name, parameter in list(module.named_parameters(recurse=False)):
                found = self._names.get(parameter.data_ptr())
                if found is None:
                    continue
                left.discard(found)
                kept = self._kept[found]
                if type(module) is torch.nn.Linear and name == "weight":
                    model.set_submodule(module_name, KeptLinear(kept, module.bias, self._dtype, in_fp8=in_fp8))
                else:
                    setattr(module, name, torch.nn.Parameter(kept.full(self._dtype), parameter.requires_grad))
        return left


def _as_bytes(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor.view(torch.uint8), requires_grad=False)


def _multiplies_fp8(values: torch.Tensor, rows: int) -> bool:
    """Whether torch._scaled_mm takes these values and a matrix of this many `rows`. It needs compute capability 8.9 or
    later."""
    sides = (values.shape[-1], rows)
    fits = values.dtype == torch.bfloat16 and all(side % _SCALED_MULTIPLE == 0 for side in sides)
    return fits and values.is_cuda and torch.cuda.get_device_capability(values.device) >= (8, 9)


def _multiplied(values: torch.Tensor, kept: Kept, bias: torch.Tensor | None) -> torch.Tensor:
    """The product in fp8. Each row of `values` is scaled to the range of fp8, and rounded."""
    assert kept.scale is not None
    rows = values.reshape(-1, values.shape[-1])
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-12) / _FP8_MAX
    in_fp8 = (rows.float() / scale).clamp_(-_FP8_MAX, _FP8_MAX).to(kept.data.dtype)
    found = torch._scaled_mm(in_fp8, kept.data.t(), scale, kept.scale.t(), out_dtype=values.dtype)
    found = found if bias is None else found + bias
    return found.unflatten(0, values.shape[:-1])
