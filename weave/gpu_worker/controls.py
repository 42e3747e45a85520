"""A job's ControlNets: loaded when a job first names them, and kept while the jobs that follow use them."""

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from weave.config.child_configs import WorkerControl, WorkerModel
from weave.gpu_worker.canvas import Canvas
from weave.gpu_worker.device import has_room, release_memory
from weave.gpu_worker.loading import load_model
from weave.gpu_worker.placement import Placement
from weave.gpu_worker.tensors import is_zero
from weave.models.assets import Source, Weights
from weave.models.configs import shown
from weave.models.control_files import ControlFiles, find_control
from weave.models.control_nets import Unused
from weave.models.families import FAMILIES
from weave.models.files import ModelFilesRefused
from weave.protocol.inputs import RequestedControl
from weave.protocol.parameters import Parameters


class ControlRefused(Exception):
    """A ControlNet cannot be used with the model. The message has its ID and the reason."""


class Controls:
    """The ControlNets in memory: those of the last job that used any. A job that names others first drops those that it
    does not use. A job without ControlNets keeps them only if a quarter of the GPU's memory is free."""

    def __init__(self, placement: Placement) -> None:
        self._loaded: dict[str, Any] = {}
        self._placement = placement
        self._were_taken = False

    def prepare(
        self, pipeline: Any, model: WorkerModel, requested: Sequence[RequestedControl], task: str
    ) -> tuple[Any, ...]:
        """The ControlNets of a job, in its order. Raises ControlRefused, and what running out of memory raises."""
        wanted = [control.id for control in requested]
        if self._placement.is_taken and not self._were_taken:
            self.drop()  # they would stay on the device, and could not share the model's layers
        self._were_taken = self._placement.is_taken
        unused = self._loaded.keys() - wanted
        if unused and (wanted or not has_room(self._placement.device, 0)):
            self._drop(unused)
            release_memory(self._placement.device)
        files = {control.offer.id: control for control in model.controls}
        for name in wanted:
            if name not in self._loaded:
                self._loaded[name] = _load(pipeline, model.offer.family, files[name], self._placement)
        found = {name: self._loaded[name] for name in wanted}
        _check_alike(model.offer.family, found)
        _check_task(pipeline, model.offer.family, found, task)
        return tuple(found.values())

    def drop(self) -> None:
        """Free their memory."""
        self._drop(set(self._loaded))

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._placement.drop(_component(name))
            del self._loaded[name]


def control_arguments(pipeline: Any, canvas: Canvas, images: Sequence[Any], parameters: Parameters) -> dict[str, Any]:
    """Arguments for the call of a pipeline with ControlNets, which resizes the `images`; empty without ControlNets. The
    values of a single one are passed as they are, those of several as lists."""
    requested = parameters.control
    if not requested:
        return {}
    # The ControlNet sees the part of the image that the model works on.
    placed = [_cropped(pipeline, canvas, image, parameters) for image in images]
    arguments: dict[str, list[Any]] = {
        # Where there is no image to start from, Stable Diffusion's and SDXL's pipelines call it `image`.
        _name_of_image(pipeline): placed,
        "controlnet_conditioning_scale": [control.scale for control in requested],
        "control_guidance_start": [control.start for control in requested],
        "control_guidance_end": [control.end for control in requested],
    }
    if len(requested) > 1:
        arguments["control_mode"] = [None] * len(requested)  # some of FLUX's pipelines fail without it
    taken = inspect.signature(type(pipeline).__call__).parameters  # Z-Image's have no start and end
    return {name: it[0] if len(requested) == 1 else it for name, it in arguments.items() if name in taken}


def _name_of_image(pipeline: Any) -> str:
    return "image" if type(pipeline).__name__ in _TAKE_IMAGE else "control_image"


_TAKE_IMAGE = ("StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline")


def _cropped(pipeline: Any, canvas: Canvas, image: Any, parameters: Parameters) -> Any:
    if canvas.region is None or canvas.original is None:
        return image
    resize = pipeline.image_processor.resize
    width, height = canvas.original.size
    whole = resize(image, height, width)
    return resize(whole.crop(canvas.region), parameters.height, parameters.width, resize_mode="fill")


def _component(name: str) -> str:
    """The ControlNet's name among the model's components."""
    return f"control.{name}"


def _load(pipeline: Any, name: str, control: WorkerControl, placement: Placement) -> Any:
    family, device = FAMILIES[name], placement.device
    denoiser, path = getattr(pipeline, family.denoiser), Path(control.path)
    try:
        assert family.control_nets is not None
        is_moved = placement.is_taken or device.type != "cpu"
        with Source(path).as_pinned(control.sha256):
            dtype = denoiser.dtype
            blocks = len(pipeline.vae.config.get("block_out_channels", ()))
            found = find_control(name, path, str(dtype).removeprefix("torch."), denoiser.config, blocks)
            weights, config = _without_unused(path, found, family.control_nets.unused)
            loaded = load_model(weights, path.name, family.control_nets.model, config, dtype, mapped=is_moved)
            if placement.is_taken:
                placement.take(_component(control.offer.id), loaded)
                if family.control_nets.shares_layers:
                    _share(placement, _component(control.offer.id), loaded, family.denoiser, denoiser)
    except (ModelFilesRefused, OSError) as error:
        raise ControlRefused(f"{control.offer.id}: {error}") from None
    return loaded if placement.is_taken else loaded.to(device)


def _share(placement: Placement, name: str, net: Any, denoiser_name: str, denoiser: Any) -> None:
    """A pipeline gives the ControlNet the layers that it shares with the model. Their parameters are replaced each time
    that they are copied to the device, so the ControlNet gets them again."""
    placement.shares(name, denoiser_name)

    def give(*_: Any) -> None:
        type(net).from_transformer(net, denoiser)

    net.register_forward_pre_hook(give)


def _without_unused(path: Path, found: ControlFiles, unused: Unused | None) -> tuple[Weights, dict[str, Any]]:
    config, weights = found
    names = weights.names or {}
    if unused is None or unused.zero not in names or not is_zero(path, names[unused.zero]):
        return weights, config
    kept = {name: stored for name, stored in names.items() if not name.startswith(unused.prefix)}
    return weights._replace(names=kept), {**config, **unused.config}


def _check_task(pipeline: Any, name: str, found: dict[str, Any], task: str) -> None:
    family = FAMILIES[name]
    if family.control_nets is None or family.control_nets.tasks is None:
        return
    for control, net in found.items():
        tasks = family.control_nets.tasks(net.config, getattr(pipeline, family.denoiser).config)
        if task not in tasks:
            raise ControlRefused(f"{control}: it is for {' and '.join(tasks)}, not for {task}")


def _check_alike(family: str, found: dict[str, Any]) -> None:
    """A pipeline uses the first one's values for all."""
    nets = FAMILIES[family].control_nets
    names = list(found)
    for key in nets.alike if nets is not None else ():
        for name in names[1:]:
            first, other = (shown(found[it].config[key]) for it in (names[0], name))
            if first != other:
                detail = f"{key} is {other}, that of {names[0]} is {first}: the two cannot be used at once"
                raise ControlRefused(f"{name}: {detail}")
