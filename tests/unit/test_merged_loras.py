"""merged() puts every bit of the weights back, wherever they were kept and whatever failed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.loras import KOHYA, Lora
from tests.support.reference import make_small_model
from weave.config.child_configs import WorkerLora, WorkerModel
from weave.gpu_worker import loras
from weave.gpu_worker.loading import load_pipeline
from weave.gpu_worker.loras import LoraRefused, merged
from weave.gpu_worker.placement import Placement
from weave.models.assets import Source
from weave.models.families import FAMILIES
from weave.protocol.client_messages import ModelOffer
from weave.protocol.loras import LoraOffer, RequestedLora

CPU = torch.device("cpu")
LAYERS = ("mid_block.resnets.0.conv1", "conv_in", "time_embedding.linear_1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, WorkerModel, Lora]:
    folder = tmp_path_factory.mktemp("model")
    path = make_small_model("sd1", folder / "sd1")
    pipeline = load_pipeline("sd1", Source(path), CPU, torch.float16)
    lora = Lora(pipeline, {f"lora_unet_{layer.replace('.', '_')}": f"unet {layer}" for layer in LAYERS}, KOHYA)
    files = []
    for name in ("one", "two"):
        offer = LoraOffer(id=name, family="sd1", title="", max_weight=2.0)
        files.append(WorkerLora(offer=offer, path=str(lora.write(folder / name)), sha256=None))
    known = FAMILIES["sd1"]
    offered = ModelOffer(
        id="m", family="sd1", title="", bounds=known.bounds, defaults=known.defaults, schedulers=known.schedulers
    )
    return (
        pipeline,
        WorkerModel(offer=offered, path=str(path), layout=None, parts={}, sha256={}, loras=tuple(files)),
        lora,
    )


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor.view(torch.uint8), other[name].view(torch.uint8)) for name, tensor in one.items())


@pytest.mark.parametrize("room", [True, False])
def test_the_weights_are_put_back(model: Any, monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    pipeline, offered, lora = model
    monkeypatch.setattr(loras, "has_room", lambda *_: room)
    before = weights(pipeline)
    with merged(pipeline, offered, (RequestedLora("one", 2.0), RequestedLora("two", -0.5)), Placement(CPU)):
        found = weights(pipeline)
    assert same(weights(pipeline), before)
    lora.merge(pipeline, 1.5)
    expected = weights(pipeline)
    pipeline.unet.load_state_dict(before)
    assert same(found, expected) and not same(found, before)


def fails_at(call: int, original: Callable[..., None]) -> Callable[..., None]:
    calls = iter(range(call))

    def add_to(*arguments: Any) -> None:
        if next(calls, None) is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(*arguments)

    return add_to


@pytest.mark.parametrize("call", range(len(LAYERS)))
def test_running_out_of_memory_changes_nothing(model: Any, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    pipeline, offered, _ = model
    before = weights(pipeline)
    monkeypatch.setattr(loras._Product, "add_to", fails_at(call, loras._Product.add_to))
    with pytest.raises(torch.OutOfMemoryError), merged(pipeline, offered, (RequestedLora("one"),), Placement(CPU)):
        raise AssertionError("it was merged")
    assert same(weights(pipeline), before)


def test_an_error_in_the_job_reaches_the_caller(model: Any) -> None:
    pipeline, offered, _ = model
    before = weights(pipeline)
    with (
        pytest.raises(RuntimeError, match="the job"),
        merged(pipeline, offered, (RequestedLora("one"),), Placement(CPU)),
    ):
        raise RuntimeError("the job")
    assert same(weights(pipeline), before)


def test_one_bad_file_of_two_changes_nothing(model: Any) -> None:
    pipeline, offered, _ = model
    before = weights(pipeline)
    Path(offered.loras[1].path).write_bytes(b"")
    both = (RequestedLora("one"), RequestedLora("two"))
    with (
        pytest.raises(LoraRefused, match="two: two: header of 0 bytes"),
        merged(pipeline, offered, both, Placement(CPU)),
    ):
        raise AssertionError("it was merged")
    assert same(weights(pipeline), before)
