"""Weights that are on the device only while they are needed. Each unit has one block of main memory, its home.

While a unit is offloaded, its parameters are on torch's meta device, where they take no memory. Most operations fail
with them, but some of torch's CPU kernels do not, so placement.py copies a component to the device before it is called.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from weave import log

# In bytes. At least that of torch's allocators: torch selects kernels by alignment, and their results differ.
_ALIGNMENT = 512
_PAGE = 4096


class Place(NamedTuple):
    """A parameter of a module."""

    module: torch.nn.Module
    name: str

    @property
    def parameter(self) -> torch.nn.Parameter:
        """The module's current parameter."""
        found: torch.nn.Parameter = getattr(self.module, self.name)
        return found


class _Stored(NamedTuple):
    """A tensor of a unit: where it starts in the unit, and all places that use it, since modules may share
    parameters."""

    start: int
    home: torch.Tensor
    places: tuple[Place, ...]
    requires_grad: bool


class Unit:
    """The weights of one block of a component, or those outside its blocks."""

    def __init__(self, parameters: dict[torch.nn.Parameter, list[Place]]) -> None:
        """Moves the parameters out of their modules. Only during this call are there two copies."""
        sizes = [_aligned(parameter.nbytes) for parameter in parameters]
        self.size = sum(sizes)
        # On pages of its own, which pin() requires.
        whole = torch.empty(_paged(self.size) + _PAGE, dtype=torch.uint8)
        start = -whole.data_ptr() % _PAGE
        self._home = whole[start : start + _paged(self.size)]
        self._stored: list[_Stored] = []
        self._replaced: dict[int, torch.Tensor] = {}
        self.on_device: torch.Tensor | None = None
        self._is_pinned = False
        begin = 0
        for (parameter, places), size in zip(parameters.items(), sizes, strict=True):
            home = _view(self._home, begin, parameter)
            home.copy_(parameter.detach())
            self._stored.append(_Stored(begin, home, tuple(places), parameter.requires_grad))
            begin += size
        self.leave()

    def bring(self, memory: torch.Tensor | None = None, device: torch.device | None = None) -> None:
        """Copy the weights to the device: into `memory`, which the caller still owns, or into memory of its own. The
        copy may still be in progress on the current stream."""
        if memory is None:
            memory = torch.empty(self.size, dtype=torch.uint8, device=device)
        memory[: self.size].copy_(self._home[: self.size], non_blocking=True)
        self.on_device = memory

    def enter(self) -> None:
        """Give the modules the parameters that bring() has copied, in the dtype that the module has now: it may have
        been cast while it was offloaded."""
        assert self.on_device is not None
        for number, stored in enumerate(self._stored):
            other = self._replaced.get(number)
            if other is None:
                tensor = _view(self.on_device, stored.start, stored.home)
            else:
                tensor = other.to(self.on_device.device, copy=True)
            _put(stored, tensor.to(stored.places[0].parameter.dtype))

    def leave(self) -> None:
        """Put the modules' parameters on the meta device, and release the copy that bring() made."""
        for stored in self._stored:
            dtype = stored.places[0].parameter.dtype
            _put(stored, torch.empty(stored.home.shape, dtype=dtype, device="meta"))
        self.on_device = None

    def pin(self) -> None:
        """Pin the home's pages, so that copies to a GPU run in parallel with computation. Without pinning they are
        correct too, but slower."""
        if self._is_pinned:
            return
        # pin_memory() would round the size up to a power of two.
        status = int(torch.cuda.cudart().cudaHostRegister(self._home.data_ptr(), self._home.nbytes, 0))
        self._is_pinned = status == 0
        if status != 0:
            log.write("worker", "memory_not_pinned", bytes=self._home.nbytes, status=status)
            with contextlib.suppress(RuntimeError):  # CUDA reports the error again at the next launch of a kernel
                torch.zeros(1, device="cuda").sum().item()

    def unpin(self) -> None:
        """Call it before the home is freed: CUDA would still use its pages, whatever is at that address by then."""
        if self._is_pinned:
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self._home.data_ptr())
            self._is_pinned = False

    def places(self) -> Iterator[tuple[Place, int]]:
        """Each place, with the number of its tensor in this unit."""
        for number, stored in enumerate(self._stored):
            for place in stored.places:
                yield place, number

    def home(self, number: int) -> torch.Tensor:
        """The tensor in main memory. A change to it takes effect at the next bring()."""
        return self._stored[number].home

    @contextlib.contextmanager
    def replaced(self, number: int, tensor: torch.Tensor) -> Iterator[None]:
        """In this context the unit has another tensor, which may have another shape."""
        self._replaced[number] = tensor
        try:
            yield
        finally:
            del self._replaced[number]


def _put(stored: _Stored, tensor: torch.Tensor) -> None:
    # requires_grad is kept: on the CPU it selects kernels.
    parameter = torch.nn.Parameter(tensor, stored.requires_grad)
    for place in stored.places:
        setattr(place.module, place.name, parameter)


def _view(memory: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    return memory[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _paged(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
