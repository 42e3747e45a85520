"""Two blocks of a component on the device: the one that computes, and the next one, which is copied there meanwhile."""

import contextlib
from collections.abc import Sequence

import torch

from weave.gpu_worker.units import Unit


class _Slot:
    """Memory on the device for one block. `ready` is when it has arrived, `free` when the device has used it."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.unit: Unit | None = None
        self.ready: torch.cuda.Event | None = None
        self.free: torch.cuda.Event | None = None


class Blocks:
    """The blocks of a component that is in use. On a GPU they are copied on a stream of their own; on the CPU the same
    steps run one after another. The order of the blocks is that of the pass before."""

    def __init__(self, units: Sequence[Unit], device: torch.device) -> None:
        size = max(unit.size for unit in units)
        self._slots = [_Slot(size, device) for _ in range(2)]
        self.size = 2 * size
        self._after: dict[Unit, Unit] = {}
        self._last: Unit | None = None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._copies is not None:  # what used the slots' memory before may still run
            self._copies.wait_stream(torch.cuda.current_stream())

    def enter(self, unit: Unit) -> None:
        """Before the block computes: wait until it is there, and send for the next one."""
        slot = self._slot_with(unit) or self._send_for(unit)
        if slot.ready is not None:
            torch.cuda.current_stream().wait_event(slot.ready)
        unit.enter()
        if self._last is not None:
            self._after[self._last] = unit
        self._last = unit
        following = self._after.get(unit)
        if following is not None and self._slot_with(following) is None:
            self._send_for(following, other_than=slot)

    def leave(self, unit: Unit) -> None:
        """After the block has computed."""
        slot = self._slot_with(unit)
        assert slot is not None
        unit.leave()
        slot.unit = None
        if self._copies is not None:
            slot.free = torch.cuda.current_stream().record_event()

    def close(self) -> None:
        """Take every block away; the slots' memory may be used for something else."""
        for slot in self._slots:
            if slot.unit is not None:
                slot.unit.leave()
        if self._copies is not None:
            torch.cuda.current_stream().wait_stream(self._copies)
        self._slots.clear()

    def _slot_with(self, unit: Unit) -> _Slot | None:
        return next((slot for slot in self._slots if slot.unit is unit), None)

    def _send_for(self, unit: Unit, other_than: _Slot | None = None) -> _Slot:
        slots = [slot for slot in self._slots if slot is not other_than]
        slot = next((slot for slot in slots if slot.unit is None), slots[0])
        if slot.unit is not None:  # the order has changed
            slot.unit.leave()
        slot.unit = unit
        with torch.cuda.stream(self._copies) if self._copies is not None else contextlib.nullcontext():
            if slot.free is not None and self._copies is not None:
                self._copies.wait_event(slot.free)
            unit.bring(slot.memory)
            slot.ready = self._copies.record_event() if self._copies is not None else None
        return slot
