"""Which ControlNets a worker keeps between jobs, and that a pipeline with them shares the model's components."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from tests.support.control_nets import make_control
from tests.support.reference import assembled, make_small_model
from weave.config.child_configs import WorkerControl, WorkerModel
from weave.gpu_worker import controls as module
from weave.gpu_worker.classes import pipeline_for
from weave.gpu_worker.controls import ControlRefused, Controls
from weave.gpu_worker.placement import Placement
from weave.models.families import FAMILIES
from weave.protocol.inputs import TEXT_TO_IMAGE, ControlOffer, InputImage, RequestedControl


class Loads:
    """Replaces loading: `log` has what was loaded, and what was in memory at that time."""

    def __init__(self) -> None:
        self.log: list[tuple[str, tuple[str, ...]]] = []
        self.controls = Controls(Placement(torch.device("cpu")))

    def load(self, pipeline: Any, family: str, control: WorkerControl, placement: Placement) -> Any:
        self.log.append((control.offer.id, tuple(self.controls._loaded)))
        return SimpleNamespace(config={"guidance_embeds": control.offer.id != "c"})

    def prepare(self, *names: str, family: str = "sd1") -> tuple[Any, ...]:
        offers = (ControlOffer(id=name, family=family, title=name) for name in "abc")
        known = tuple(WorkerControl(offer=offer, path="x", sha256={}) for offer in offers)
        model: Any = SimpleNamespace(offer=SimpleNamespace(family=family), controls=known)
        pipeline = SimpleNamespace(device=torch.device("cpu"))
        image = InputImage(width=8, height=8)
        requested = [RequestedControl(id=name, image=image) for name in names]
        return self.controls.prepare(pipeline, model, requested, TEXT_TO_IMAGE)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    made = Loads()
    monkeypatch.setattr(module, "_load", made.load)
    return made


def test_later_jobs_use_what_is_loaded(loads: Loads) -> None:
    first, again = loads.prepare("a", "b"), loads.prepare("b", "a")
    assert loads.prepare() == () and loads.prepare("a") == first[:1]
    assert again == first[::-1] and loads.log == [("a", ()), ("b", ("a",))]


def test_unused_controls_are_dropped_before_one_is_loaded(loads: Loads) -> None:
    loads.prepare("a", "b")
    loads.prepare("b", "c")
    loads.prepare("a")
    assert loads.log[2:] == [("c", ("b",)), ("a", ())]


def test_without_room_a_job_without_controls_drops_them(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    loads.prepare("a")
    monkeypatch.setattr(module, "has_room", lambda device, needed: False)
    loads.prepare("a")
    assert loads.log == [("a", ())]
    loads.prepare()
    assert loads.controls._loaded == {}


def test_controls_that_differ_in_guidance_are_not_mixed(loads: Loads) -> None:
    """FLUX's pipeline uses the first one's setting for all."""
    loads.prepare("a", "b", family="flux")
    with pytest.raises(ControlRefused, match="c: guidance_embeds is False, that of a is True: the two cannot be used"):
        loads.prepare("a", "c", family="flux")
    assert len(loads.prepare("c", family="flux")) == 1


def test_a_pipeline_with_controls_shares_all_components(tmp_path: Path) -> None:
    own = assembled("sd1", make_small_model("sd1", tmp_path / "sd1"), torch.float32)
    net = diffusers.ControlNetModel.from_pretrained(str(make_control("sd1", own, tmp_path / "net", 1)))
    family = FAMILIES["sd1"]
    assert family.control_nets is not None
    for task, class_name in family.control_nets.pipelines.items():
        for nets in ([net], [net, net]):
            made = pipeline_for(own, family, task, nets)
            assert type(made).__name__ == class_name
            for part, component in own.components.items():
                assert getattr(made, part) is component, part
            found = made.controlnet.nets if len(nets) > 1 else [made.controlnet]
            assert all(it is net for it in found)
    assert pipeline_for(own, family, "text-to-image") is own


def test_a_control_of_z_image_shares_layers_of_the_model(tmp_path: Path) -> None:
    """Its files do not have them."""
    own = assembled("z-image", make_small_model("z-image", tmp_path / "z-image"), torch.float32)
    places = {"control_layers_places": [0], "control_refiner_layers_places": [0]}
    folder = make_control("z-image", own, tmp_path / "net", 1, **places)
    offer = ControlOffer(id="net", family="z-image", title="net")
    net = module._load(own, "z-image", WorkerControl(offer=offer, path=str(folder), sha256={}), Placement(own.device))
    missing = {name for name, value in vars(net).items() if value is None} - {"control_noise_refiner"}
    before = {name: tensor.clone() for name, tensor in own.transformer.state_dict().items()}
    assert pipeline_for(own, FAMILIES["z-image"], "text-to-image", [net]).controlnet is net
    assert len(missing) >= 8 and all(getattr(net, name) is getattr(own.transformer, name) for name in missing)
    assert all(torch.equal(before[name], tensor) for name, tensor in own.transformer.state_dict().items())


def test_the_worker_model_lists_their_paths() -> None:
    offer = ControlOffer(id="a", family="sd1", title="a")
    model = WorkerModel(
        offer=SimpleNamespace(),
        path="/m",
        layout=None,
        parts={},
        sha256={},
        controls=(WorkerControl(offer=offer, path="/n", sha256={}),),
    )
    assert model.paths() == ("/m", "/n")
