"""Weights that come to the device as they are used: the same pixels, and never more on the device than was planned.

The device is the CPU here too, with copies in memory of its own; what is away is on torch's meta device. Streams and
pinned memory need a GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.support import tiny_models
from tests.support.reference import make_small_model
from weave.gpu_worker import loras
from weave.gpu_worker import placement as module
from weave.gpu_worker.decode import decode
from weave.gpu_worker.loading import load_pipeline
from weave.gpu_worker.pipelines import adapter_of
from weave.gpu_worker.placement import Need, Placement
from weave.gpu_worker.streaming import Blocks
from weave.gpu_worker.units import Unit
from weave.models.assets import Source
from weave.models.families import FAMILIES
from weave.protocol.inputs import TEXT_TO_IMAGE

CPU = torch.device("cpu")


class Made(NamedTuple):
    """A pipeline of which every component was taken."""

    family: str
    pipeline: Any
    placement: Placement

    def components(self) -> dict[str, Any]:
        return self.placement._components


def load(family: str, folder: Path) -> Made:
    placement = Placement(CPU)

    def take(pipeline: Any) -> None:
        for name in FAMILIES[family].components:
            if isinstance(getattr(pipeline, name), torch.nn.Module):
                placement.take(name, getattr(pipeline, name))

    return Made(family, load_pipeline(family, Source(folder), CPU, torch.float32, take=take), placement)


def pixels(family: str, pipeline: Any) -> bytes:
    adapter, found = adapter_of(family), {}

    def after_step(pipeline: Any, step: int, time: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found["latents"] = tensors["latents"]
        decode(pipeline, adapter, tensors["latents"], 64, 64)  # a preview: the VAE in the middle of denoising
        return tensors

    with torch.inference_mode():
        adapter.call(
            pipeline,
            adapter.call_arguments(("a red circle",), "blurred", 4.0),
            width=64,
            height=64,
            num_inference_steps=2,
            output_type="latent",
            callback_on_step_end=after_step,
            generator=torch.Generator().manual_seed(1),
        )
        return decode(pipeline, adapter, found["latents"], 64, 64).tobytes()


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if TEXT_TO_IMAGE in family.tasks])
def test_pixels_are_the_same_in_each_plan(family: str, tmp_path: Path) -> None:
    model = make_small_model(family, tmp_path / family)
    plain = pixels(family, load_pipeline(family, Source(model), CPU, torch.float32))
    made = load(family, model)

    def streamed(name: str) -> Need:
        return Need() if name == "vae" else Need(room=0)

    peaks = []
    for need in (lambda name: Need(), streamed, lambda name: Need()):
        made.placement.begin(need, None)
        assert pixels(family, made.pipeline) == plain
        peaks.append(made.placement.peak)
    assert peaks[1] <= peaks[0] == peaks[2] < sum(component.whole for component in made.components().values())


@pytest.fixture
def flux(tmp_path: Path) -> Made:
    """With eight blocks."""
    import diffusers

    folder = tiny_models.make("flux", tmp_path / "flux")
    config = diffusers.FluxTransformer2DModel.load_config(folder / "transformer")
    wanted = {"num_layers": 4, "num_single_layers": 4, "num_attention_heads": 6}
    diffusers.FluxTransformer2DModel.from_config(config, **wanted).save_pretrained(folder / "transformer")
    return load("flux", folder)


def on_device(made: Made) -> Iterator[tuple[str, str]]:
    """What is there by component and block, found by its parameters: those that are away have no memory."""
    for name, component in made.components().items():
        for block, unit in component.units.items():
            if unit.on_device is not None:
                yield name, block
            elif not all(place.parameter.is_meta for place, _ in unit.places()):
                raise AssertionError(f"{name} {block} was not brought, and can compute")


def watch(made: Made, monkeypatch: pytest.MonkeyPatch) -> list[set[tuple[str, str]]]:
    """What is on the device whenever a block computes."""
    seen: list[set[tuple[str, str]]] = []
    enter = Unit.enter

    def entered(unit: Unit) -> None:
        enter(unit)
        seen.append(set(on_device(made)))

    monkeypatch.setattr(Unit, "enter", entered)
    return seen


def test_one_component_is_on_the_device_at_a_time(flux: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(flux, monkeypatch)
    flux.placement.begin(lambda name: Need(), None)
    pixels("flux", flux.pipeline)
    assert all(len({name for name, _ in found}) == 1 for found in seen)
    assert {name for found in seen for name, _ in found} == {"text_encoder", "text_encoder_2", "transformer", "vae"}


def test_two_blocks_are_on_the_device_at_a_time(flux: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[tuple[str, str]]] = []
    enter = Blocks.enter

    def entered(blocks: Blocks, unit: Unit) -> None:
        enter(blocks, unit)  # which also sends for the next one
        seen.append(set(on_device(flux)))

    monkeypatch.setattr(Blocks, "enter", entered)
    flux.placement.begin(lambda name: Need(room=0 if name == "transformer" else None), None)
    pixels("flux", flux.pipeline)
    blocks = [{block for name, block in found if name == "transformer" and block} for found in seen]
    assert max(map(len, blocks)) == 2 and set.union(*blocks) == set(flux.components()["transformer"].units) - {""}
    assert flux.placement.peak < flux.components()["transformer"].whole


def test_where_there_is_room_all_stays(flux: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sum(component.whole for component in flux.components().values())
    flux.placement.begin(lambda name: Need(), whole)
    pixels("flux", flux.pipeline)
    seen = watch(flux, monkeypatch)
    pixels("flux", flux.pipeline)
    assert seen == [] and flux.placement.resident == whole
    beside = whole // 4  # of the denoiser: to make room for it something else must go, what was used first
    flux.placement.begin(lambda name: Need(beside if name == "transformer" else 0), whole)
    pixels("flux", flux.pipeline)
    assert flux.placement.peak <= whole and seen != []


def test_blocks_for_which_there_is_room_stay(flux: Made) -> None:
    transformer = flux.components()["transformer"]
    plain = transformer.whole
    for part in (0.6, 0.8, 2.0):
        room = int(part * plain)
        flux.placement.begin(lambda name: Need(room=room if name == "transformer" else None), room)  # noqa: B023
        pixels("flux", flux.pipeline)
        assert transformer.wanted <= max(room, transformer.units[""].size)
        assert (transformer.coming == []) is (part > 1)
    assert flux.placement.peak <= 2 * plain


@pytest.mark.parametrize("streamed", [False, True])
def test_what_was_not_brought_cannot_compute(flux: Made, monkeypatch: pytest.MonkeyPatch, streamed: bool) -> None:
    """A block that a mistake leaves away fails; nothing is computed from what is left in memory."""
    flux.placement.begin(lambda name: Need(room=0 if streamed and name == "transformer" else None), None)
    if streamed:
        monkeypatch.setattr(Blocks, "enter", lambda blocks, unit: None)
        monkeypatch.setattr(Blocks, "leave", lambda blocks, unit: None)
    else:
        monkeypatch.setattr(module._Component, "bring", lambda component: None)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        pixels("flux", flux.pipeline)


def test_after_a_failure_in_a_block_the_next_job_is_right(flux: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    flux.placement.begin(lambda name: Need(room=0 if name == "transformer" else None), None)
    plain = pixels("flux", flux.pipeline)
    block = flux.pipeline.transformer.single_transformer_blocks[1]
    with monkeypatch.context() as patched:
        patched.setattr(block, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pixels("flux", flux.pipeline)
    flux.placement.begin(lambda name: Need(room=0 if name == "transformer" else None), None)
    assert pixels("flux", flux.pipeline) == plain


def test_a_vae_that_is_cast_while_it_is_away_comes_back_cast(flux: Made) -> None:
    vae = flux.pipeline.vae
    flux.placement.begin(lambda name: Need(), None)
    vae.to(torch.float64)
    vae.decode(torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float64}
    vae.to(torch.float32)
    flux.placement._components["vae"].send()
    vae.decode(torch.zeros(1, 1, 8, 8))
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}


def test_what_is_changed_at_home_counts_and_can_be_put_back(flux: Made) -> None:
    placement, transformer = flux.placement, flux.pipeline.transformer
    placement.begin(lambda name: Need(), None)
    plain = pixels("flux", flux.pipeline)
    weight = placement.stored(transformer.x_embedder)
    own = weight.clone()
    weight[0].add_(1.0)
    assert pixels("flux", flux.pipeline) != plain
    placement.stored(transformer.x_embedder).copy_(own)
    assert pixels("flux", flux.pipeline) == plain
    with placement.replaced(transformer.x_embedder, torch.zeros_like(own)):
        assert pixels("flux", flux.pipeline) != plain
    assert pixels("flux", flux.pipeline) == plain


@pytest.mark.parametrize("room", [None, 0])
def test_a_lora_is_gone_from_the_device_after_its_job(
    flux: Made, monkeypatch: pytest.MonkeyPatch, room: int | None
) -> None:
    """Also where everything has room to stay, and of blocks that come one after another."""
    nothing: Any = None
    layer = flux.pipeline.transformer.x_embedder
    product = loras._Product(torch.randn(layer.out_features, 4), torch.randn(4, layer.in_features), 1.0)
    found = {("transformer", "x_embedder"): [product]}
    flux.placement.begin(lambda name: Need(room=room if name == "transformer" else None), 2**40)
    plain = pixels("flux", flux.pipeline)
    monkeypatch.setattr(loras, "_read_all", lambda *_: found)
    with loras.merged(flux.pipeline, nothing, nothing, flux.placement):
        assert pixels("flux", flux.pipeline) != plain
    assert pixels("flux", flux.pipeline) == plain


def test_a_component_that_did_not_fit_comes_whole_the_next_time(flux: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    flux.placement.begin(lambda name: Need(), None)
    plain = pixels("flux", flux.pipeline)
    bring, calls = Unit.bring, iter(range(3))

    def short(unit: Unit, *arguments: Any, **options: Any) -> None:
        if next(calls, None) is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        bring(unit, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Unit, "bring", short)
        with pytest.raises(torch.OutOfMemoryError):
            pixels("flux", flux.pipeline)
    assert pixels("flux", flux.pipeline) == plain
