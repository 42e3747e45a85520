"""Chooses each job's memory plan from its size, the model's weights and the device's memory, and applies it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from weave import log
from weave.config.child_configs import WorkerModel
from weave.gpu_worker import device as devices
from weave.gpu_worker.placement import Need, Placement
from weave.models.assets import find_assets, source_of
from weave.models.control_files import check_files
from weave.models.families import FAMILIES
from weave.models.faults import collect
from weave.models.memory import Size, size_of
from weave.models.plans import Estimate, Needs, Plan, after, choose, fitting_size, needs_of, smallest, work_of
from weave.protocol.defaults import plainest, with_defaults
from weave.protocol.inputs import RequestedControl
from weave.protocol.parameters import Parameters
from weave.protocol.worker_messages import Memory, TooLarge

# The fraction of the room for a streamed denoiser's blocks that is used; the rest is for estimates that are too low.
_SLACK = 0.95


class NoRoom(Exception):
    """The job fits in no plan."""

    def __init__(self, found: TooLarge) -> None:
        super().__init__(f"it needs {found.needed} bytes, and {found.available} are available")
        self.found = found


class Planned(NamedTuple):
    """A job's plan. `strict`: an estimate was too low, so only what is in use stays on the device."""

    plan: Plan
    estimate: Estimate
    strict: bool = False


class Planner:
    """The plans of one worker's model."""

    def __init__(self, model: WorkerModel, device: torch.device, dtype: torch.dtype, memory_bytes: int) -> None:
        self.placement = Placement(device)
        self._model = model
        self._family = FAMILIES[model.offer.family]
        self._dtype = str(dtype).removeprefix("torch.")
        self._memory_bytes = memory_bytes
        self._needs = Needs(self._family, self._dtype, {}, 0)
        self._available: int | None = None

    def plan_load(self, parameters: Parameters | None) -> Planned:
        """Read the headers of the model's files, and choose a plan for the job for which the model is loaded. Raises
        ModelFilesRefused, NoRoom."""
        model, offer = self._model, self._model.offer
        assets = find_assets(offer.family, source_of(model.path, model.layout, model.parts), self._dtype)
        self._needs = needs_of(self._family, assets, self._dtype, full=model.weights == "full")
        if parameters is None:
            parameters = with_defaults(plainest(offer.bounds), offer.defaults, offer.bounds, seed=0)
        planned = self.plan(parameters)
        needed = planned.estimate.needed(planned.plan)
        log.write("worker", "memory_planned", plan=planned.plan.name, needed=needed, available=self._available)
        return planned

    def plan(self, parameters: Parameters) -> Planned:
        """Choose a plan for a job. Raises NoRoom."""
        self._available = devices.available(self.placement.device, self._memory_bytes)
        found = self._estimate(parameters)
        plan = choose(found, self._available, self._model.memory)
        if plan is None:
            raise NoRoom(self._too_large(parameters, found))
        if plan.placement == "card" and self.placement.is_taken:
            plan = Plan("stages", plan.tiled)  # if there is room, all weights stay on the device
        return Planned(plan, found)

    def after(self, planned: Planned) -> Planned | None:
        """The second attempt for a job that ran out of memory; None: no second attempt."""
        has_budget = self._available is not None
        plan = after(planned.plan, planned.estimate, has_budget=has_budget) if self._model.memory == "auto" else None
        return Planned(plan, planned.estimate, strict=has_budget) if plan is not None else None

    def apply(self, pipeline: Any, planned: Planned) -> None:
        """Before a job: offload the model if the plan needs it, and set the VAE's tiling."""
        plan = planned.plan
        if plan.placement != "card" and not self.placement.is_taken:
            self.take(pipeline)
        if plan.tiled:
            pipeline.vae.enable_tiling()
            pipeline.vae.enable_slicing()
        else:
            pipeline.vae.disable_tiling()
            pipeline.vae.disable_slicing()

    def begin(self, planned: Planned) -> None:
        """Before a job, once its ControlNets are loaded."""
        plan, found = planned.plan, planned.estimate
        room = None if planned.strict else self._available
        decoding = found.vae - self._needs.sizes["vae"].whole + (found.tiled if plan.tiled else found.decoding)

        def need(name: str) -> Need:
            if name == "vae":
                return Need(decoding)
            beside = 0 if name in found.encoders else found.denoising
            return Need(beside, self._room_of(name, found, beside) if plan.placement == "streamed" else None)

        self.placement.begin(need, room)

    def _room_of(self, name: str, found: Estimate, beside: int) -> int | None:
        """The room for a component's weights in the plan `streamed`; None if the component need not be streamed."""
        room, sizes = self._available or 0, self._needs.sizes
        if name in found.encoders:
            return None if sizes[name].whole <= room else room
        if name != self._family.denoiser:
            return 0
        controls = found.denoiser.streamed - sizes[name].streamed
        return int(_SLACK * (room - beside - controls))

    def memory(self) -> Memory:
        """Bytes on the device."""
        placement = self.placement
        used = placement.peak if placement.is_taken else sum(size.whole for size in self._needs.sizes.values())
        return devices.memory(placement.device, used, self._memory_bytes)

    def take(self, pipeline: Any) -> None:
        """Offload the model's weights to main memory."""
        for part in self._needs.sizes:
            self.placement.take(part, getattr(pipeline, part))

    def _estimate(self, parameters: Parameters) -> Estimate:
        return self._estimate_with(parameters, self._controls(parameters))

    def _estimate_with(self, parameters: Parameters, controls: Sequence[Size]) -> Estimate:
        return self._needs.estimate(work_of(parameters, self._family.activations.least_reference), controls)

    def _controls(self, parameters: Parameters) -> Sequence[Size]:
        """Reads the headers of their files."""
        return tuple(self._size_of_control(control) for control in parameters.control)

    def _size_of_control(self, requested: RequestedControl) -> Size:
        """Size 0 for files that will be refused at load."""
        nets = self._family.control_nets
        control = next(control for control in self._model.controls if control.offer.id == requested.id)
        faults, weights = collect(check_files(Path(control.path), self._family.name, {}))
        if nets is None or weights is None or faults:
            return Size(0, 0)
        return size_of(nets.model, weights, self._dtype)

    def _too_large(self, parameters: Parameters, found: Estimate) -> TooLarge:
        available, setting = self._available, self._model.memory
        assert available is not None
        controls = self._controls(parameters)

        def fits(smaller: Parameters) -> bool:
            return choose(self._estimate_with(smaller, controls), available, setting) is not None

        multiple = max(self._model.offer.bounds.width.multiple, self._model.offer.bounds.height.multiple)
        width, height = fitting_size(parameters, multiple, fits) or (0, 0)
        return TooLarge(smallest(found, setting), available, width, height)
