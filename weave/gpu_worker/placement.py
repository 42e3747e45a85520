"""Where a model's weights are: on the device, or offloaded to main memory until they are used.

diffusers' own offloading, of whole models and of groups, needs accelerate, for example to move a module's arguments.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from weave.gpu_worker.streaming import Blocks
from weave.gpu_worker.units import Place, Unit
from weave.models.memory import blocks

# Buffers stay on the device: pipelines read some outside of any call.
_ENTRANCES = ("encode", "decode")
# The attribute from which diffusers' pipelines take the device if the weights do not tell it.
_DEVICE_HOOK = "_hf_hook"


class Need(NamedTuple):
    """The bytes that a component needs on the device for a job: `beside` its weights, and, if it is streamed, the
    `room` for its weights. Blocks that fit into the room stay there."""

    beside: int = 0
    room: int | None = None


class _Component:
    """A module whose weights are offloaded while it is not in use."""

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self.module = module
        self.units = _units_of(module)
        self.whole = sum(unit.size for unit in self.units.values())
        self.need = Need()
        # The units that are streamed; the others are on the device at the same time.
        self.coming: list[Unit] = []
        self.blocks: Blocks | None = None
        self._device = device
        self._is_in = False

    @property
    def resident(self) -> int:
        """Bytes on the device now."""
        return self.wanted if self._is_in else 0

    @property
    def wanted(self) -> int:
        """Bytes on the device while it is in use."""
        coming = sum(unit.size for unit in self.coming)
        return self.whole - coming + 2 * max((unit.size for unit in self.coming), default=0)

    def begin(self, need: Need) -> None:
        """Before a job."""
        if self.need != need:
            self.send()
            self.need = need
            self.coming = self._coming() if need.room is not None else []
            if self._device.type == "cuda":
                for unit in self.coming:
                    unit.pin()

    def bring(self) -> None:
        """Copy the component to the device, except the streamed units."""
        if self._is_in:
            return
        self._is_in = True
        try:
            if self.coming:
                self.blocks = Blocks(self.coming, self._device)
            for unit in self.units.values():
                if unit not in self.coming:
                    unit.bring(device=self._device)
                    unit.enter()
        except BaseException:  # out of memory: half of a component is of no use
            self.send()
            raise

    def send(self) -> None:
        """Offload the component."""
        if self.blocks is not None:
            self.blocks.close()
        self.blocks = None
        for unit in self.units.values():
            unit.leave()
        self._is_in = False

    def _coming(self) -> list[Unit]:
        """The blocks to stream: those for which there is no room. The others stay for all steps."""
        blocks = [unit for name, unit in self.units.items() if name]
        assert self.need.room is not None
        room = self.need.room - self.units[""].size - 2 * max((unit.size for unit in blocks), default=0)
        while blocks and blocks[0].size <= room:
            room -= blocks.pop(0).size
        coming = sum(unit.size for unit in blocks)
        return blocks if coming > 2 * max((unit.size for unit in blocks), default=0) else []


class Placement:
    """The components of the loaded model. A component is always on the device unless take() was called for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # The most bytes of weights that were on the device at the same time since the job began.
        self.peak = 0
        self._components: dict[str, _Component] = {}  # the last one used is last
        self._places: dict[tuple[int, str], tuple[_Component, Unit, int]] = {}
        self._shared: dict[str, str] = {}
        self._room: int | None = None

    @property
    def is_taken(self) -> bool:
        """Whether weights are offloaded."""
        return bool(self._components)

    def take(self, name: str, module: torch.nn.Module) -> None:
        """Offload a component's weights to main memory; they are copied to the device when they are used."""
        component = _Component(module, self.device)
        self._components[name] = component
        for unit_name, unit in component.units.items():
            for place, number in unit.places():
                self._places[id(place.module), place.name] = (component, unit, number)
            if unit_name:
                block = module.get_submodule(unit_name)
                block.register_forward_pre_hook(partial(_enter, component, unit))
                block.register_forward_hook(partial(_leave, component, unit))
        module.register_forward_pre_hook(lambda *_: self._use(name))
        for entrance in _ENTRANCES:
            if hasattr(module, entrance):
                setattr(module, entrance, self._used(name, getattr(module, entrance)))
        for owner in module.modules():
            for buffer_name, buffer in owner.named_buffers(recurse=False):
                setattr(owner, buffer_name, buffer.to(self.device, copy=True))
        # Pipelines ask their first component where to create latents and embeddings.
        setattr(module, _DEVICE_HOOK, SimpleNamespace(execution_device=self.device))

    def shares(self, name: str, other: str) -> None:
        """The component `name` uses modules of `other`: both are on the device together."""
        self._shared[name] = other

    def drop(self, name: str) -> None:
        """Release a component that is no longer used."""
        self._shared.pop(name, None)
        if component := self._components.pop(name, None):
            component.send()
            for unit in component.units.values():
                unit.unpin()
            self._places = {key: value for key, value in self._places.items() if value[0] is not component}

    def begin(self, needs: Callable[[str], "Need"], room: int | None) -> None:
        """Before a job. `needs` returns the Need of a component by its name. As many components stay on the device as
        fit into `room` bytes; None: only the one in use."""
        self._room = room
        for name, component in self._components.items():
            component.begin(needs(name))
        self.peak = self.resident

    @property
    def resident(self) -> int:
        """Bytes of the weights of taken components that are on the device now."""
        return sum(component.resident for component in self._components.values())

    def stored(self, module: torch.nn.Module, name: str = "weight") -> torch.Tensor:
        """The tensor to change for a parameter: its copy in main memory, or the parameter itself."""
        found = self._places.get((id(module), name))
        if found is None:
            return Place(module, name).parameter
        component, unit, number = found
        component.send()
        return unit.home(number)

    def send(self, module: torch.nn.Module, name: str = "weight") -> None:
        """Offload this parameter's component, since the parameter has changed in main memory."""
        if found := self._places.get((id(module), name)):
            found[0].send()

    @contextlib.contextmanager
    def replaced(self, module: torch.nn.Module, tensor: torch.Tensor, name: str = "weight") -> Iterator[None]:
        """In this context the module has another parameter, which may have another shape."""
        found = self._places.get((id(module), name))
        if found is None:
            own = Place(module, name).parameter
            setattr(module, name, torch.nn.Parameter(tensor, own.requires_grad))
            try:
                yield
            finally:
                setattr(module, name, own)
            return
        component, unit, number = found
        component.send()
        try:
            with unit.replaced(number, tensor):
                yield
        finally:
            component.send()

    def _used(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def entrance(*arguments: Any, **options: Any) -> Any:
            self._use(name)
            return method(*arguments, **options)

        return entrance

    # Not in inference mode: parameters must not be inference tensors.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _use(self, name: str) -> None:
        """Copy a component to the device. First offload others until there is room for it."""
        names = [self._shared[name], name] if name in self._shared else [name]
        used = {it: self._components.pop(it) for it in names}
        beside = max(component.need.beside for component in used.values())
        wanted = sum(component.wanted for component in used.values())
        room = -1 if self._room is None else self._room - beside - wanted
        for other in self._components.values():
            if sum(it.resident for it in self._components.values()) > room:
                other.send()
        self._components |= used
        for component in used.values():
            component.bring()
        self.peak = max(self.peak, self.resident)


@torch.inference_mode(False)
@torch.no_grad()
def _enter(component: _Component, unit: Unit, *_: Any) -> None:
    if component.blocks is not None and unit in component.coming:
        component.blocks.enter(unit)


def _leave(component: _Component, unit: Unit, *_: Any) -> None:
    if component.blocks is not None and unit in component.coming:
        component.blocks.leave(unit)


def _units_of(module: torch.nn.Module) -> dict[str, Unit]:
    """The units by the block's name; the empty name is for parameters outside blocks."""
    parameters = list(module.named_parameters(remove_duplicate=False))
    names = blocks({name: parameter.nbytes for name, parameter in parameters})
    grouped: dict[str, dict[torch.nn.Parameter, list[Place]]] = {"": {}}
    places: dict[torch.nn.Parameter, list[Place]] = {}
    owners: dict[torch.nn.Parameter, set[str]] = {}
    for name, parameter in parameters:
        block = next((block for block in names if block and name.startswith(f"{block}.")), "")
        if isinstance(module.get_submodule(block), torch.nn.ModuleList):  # which is never called
            block = ""
        path, _, last = name.rpartition(".")
        places.setdefault(parameter, []).append(Place(module.get_submodule(path), last))
        owners.setdefault(parameter, set()).add(block)
    for parameter, found in owners.items():
        grouped.setdefault(found.pop() if len(found) == 1 else "", {})[parameter] = places[parameter]
    return {block: Unit(found) for block, found in grouped.items()}
