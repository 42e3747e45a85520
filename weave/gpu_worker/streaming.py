"""Two blocks of a component on the device: the one that runs, and the next one, which is copied at the same time."""

import contextlib
from collections.abc import Sequence

import torch

from weave.gpu_worker.units import Unit


class _Slot:
    """Device memory for one block. `ready`: the block has been copied; `free`: the device no longer uses it."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.unit: Unit | None = None
        self.ready: torch.cuda.Event | None = None
        self.free: torch.cuda.Event | None = None


class Blocks:
    """The streamed blocks of a component in use. On a GPU they are copied on a separate stream; on the CPU copies and
    computation alternate. The expected order of the blocks is that of the previous pass."""

    def __init__(self, units: Sequence[Unit], device: torch.device) -> None:
        size = max(unit.size for unit in units)
        self._slots = [_Slot(size, device) for _ in range(2)]
        self.size = 2 * size
        self._after: dict[Unit, Unit] = {}
        self._last: Unit | None = None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._copies is not None:  # kernels that used this memory before may still run
            self._copies.wait_stream(torch.cuda.current_stream())

    def enter(self, unit: Unit) -> None:
        """Before the block runs: wait until it is copied, and start to copy the next one."""
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
        """After the block has run."""
        slot = self._slot_with(unit)
        assert slot is not None
        unit.leave()
        slot.unit = None
        if self._copies is not None:
            slot.free = torch.cuda.current_stream().record_event()

    def close(self) -> None:
        """Offload every block, and release the slots' memory."""
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
