"""Images with LoRAs equal those of diffusers with the same change in its weights; without them nothing has changed."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tests.integration.test_weavectl import weavectl
from tests.support.daemon import Daemon
from tests.support.generation import generate, images, pixels
from tests.support.lora_cases import CASES
from tests.support.loras import Lora
from tests.support.reference import Reference, arguments, make_small_model, one_thread, write_index
from weave.client import Client, RequestedLora, WeaveError
from weave.protocol.client_messages import Progress

NAMES = ("sd1", "sdxl", "sd3", "flux", "chroma", "z-image", "flux2-klein", "qwen-image", "krea2")
PROMPT, STEPS, SEED, SCALE = "a red circle", 2, 5, 4.0


class Served(NamedTuple):
    """A daemon with a model of each family, and each case's LoRA."""

    daemon: Daemon
    models: Path
    loras: dict[str, Lora]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models, files = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("loras")
    config = '[device]\ndevice = "cpu"\nthreads = 1\n'
    for family in NAMES:
        write_index(family, make_small_model(family, models / family))
        config += f'[models.{family}]\npath = "{models / family}"\nfamily = "{family}"\n'
    plain = {family: Reference(family, models / family).pipeline for family in NAMES}
    loras = {}
    for number, (name, case) in enumerate(CASES.items()):
        loras[name] = Lora(plain[case.family], case.layers, case.spelling, seed=number)
        path = loras[name].write(files / f"{name}.safetensors")
        config += f'[loras.{name}]\npath = "{path}"\nfamily = "{case.family}"\nmax_weight = 4.0\n'
    daemon = Daemon(config)
    with one_thread():
        try:
            yield Served(daemon.wait_until_serving(), models, loras)
        finally:
            daemon.stop()


def wanted(client: Client, family: str, *loras: RequestedLora) -> np.ndarray[Any, Any]:
    asked = {"model": family, "width": 64, "height": 64, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
    return pixels(images(generate(client, PROMPT, loras=loras, scheduler=scheduler_of(family), **asked))[0])


def expected(served: Served, family: str, *loras: RequestedLora) -> np.ndarray[Any, Any]:
    plain = Reference(family, served.models / family)
    for lora in loras:
        served.loras[lora.id].merge(plain.pipeline, lora.weight)
    generator = torch.Generator("cpu").manual_seed(SEED)
    scheduler = plain.scheduler(scheduler_of(family))
    return plain.generate(PROMPT, scheduler, generator, **arguments(family, None, steps=STEPS, scale=SCALE))


def scheduler_of(family: str) -> str:
    return "euler" if family in ("sd1", "sdxl") else "flow_euler"


@pytest.mark.parametrize("name", CASES)
def test_an_image_equals_that_of_diffusers_with_merged_weights(served: Served, name: str) -> None:
    family, lora = CASES[name].family, RequestedLora(name, 2.0)
    with served.daemon.client() as client:
        before = wanted(client, family)
        found = wanted(client, family, lora)
        after = wanted(client, family)
    assert np.array_equal(before, expected(served, family)) and np.array_equal(after, before)
    assert np.array_equal(found, expected(served, family, lora)) and not np.array_equal(found, before)


def test_several_loras_add_up_and_a_weight_may_be_negative(served: Served) -> None:
    several = (RequestedLora("sd1-diffusers", 2.0), RequestedLora("sd1-kohya", -1.0), RequestedLora("sd1-peft", 0.5))
    overlapping = (RequestedLora("sdxl-kohya", 1.0), RequestedLora("sdxl-peft", -2.0))
    with served.daemon.client() as client:
        for family, loras in (("sd1", several), ("sdxl", overlapping)):
            found = wanted(client, family, *loras)
            assert np.array_equal(found, expected(served, family, *loras))
            assert np.array_equal(wanted(client, family, *loras[::-1]), found)


def test_a_lora_of_weight_zero_changes_nothing(served: Served) -> None:
    with served.daemon.client() as client:
        assert np.array_equal(wanted(client, "sd1", RequestedLora("sd1-kohya", 0.0)), wanted(client, "sd1"))


def test_after_a_cancel_the_weights_are_the_models_again(served: Served) -> None:
    with served.daemon.client() as client:
        before = wanted(client, "sd1")
        loras = (RequestedLora("sd1-kohya", 2.0),)
        running = client.generate(PROMPT, model="sd1", steps=100, images=8, width=64, height=64, loras=loras)
        next(answer for answer in running if isinstance(answer.event, Progress))
        running.close()  # type: ignore[attr-defined]
        assert np.array_equal(wanted(client, "sd1"), before)


def test_a_png_has_its_loras_as_a_request_has_them(served: Served) -> None:
    with served.daemon.client() as client:
        asked = {"model": "sd1", "steps": 1, "width": 64, "height": 64}
        for loras, text in (((), "[]"), ((RequestedLora("sd1-peft", 0.5),), '[{"id":"sd1-peft","weight":0.5}]')):
            (image,) = images(generate(client, PROMPT, loras=loras, **asked))
            assert Image.open(io.BytesIO(image.data)).text["loras"] == text  # type: ignore[attr-defined]


REFUSED = {
    "unlisted": (RequestedLora("none"), "names one that this model's family does not have"),
    "a path": (RequestedLora("/etc/passwd"), "names one that this model's family does not have"),
    "another family's": (RequestedLora("sdxl-peft"), "names one that this model's family does not have"),
    "above its weight": (RequestedLora("sd1-peft", 4.5), "sd1-peft is 4.5; it must be from -4.0 to 4.0"),
    "below its weight": (RequestedLora("sd1-peft", -4.5), "sd1-peft is -4.5; it must be from -4.0 to 4.0"),
}


@pytest.mark.parametrize("lora, message", REFUSED.values(), ids=REFUSED)
def test_a_lora_that_is_not_on_offer_is_refused(served: Served, lora: RequestedLora, message: str) -> None:
    with served.daemon.client() as client, pytest.raises(WeaveError, match=message) as refused:
        wanted(client, "sd1", lora)
    assert (refused.value.code, refused.value.error.field) == ("out_of_bounds", "loras")


def test_at_most_eight_are_allowed_and_none_twice(served: Served) -> None:
    for loras, message in (
        ([RequestedLora("sd1-peft")] * 2, "loras names one twice"),
        ([RequestedLora(f"x{number}") for number in range(9)], "loras is 9; it must be from 0 to 8"),
    ):
        with served.daemon.client() as client, pytest.raises(WeaveError, match=message):
            wanted(client, "sd1", *loras)


def test_clients_find_the_loras_with_the_models(served: Served) -> None:
    with served.daemon.client() as client:
        offers = client.list_models().loras
        assert "loras" in client.status().features
    assert [(it.id, it.family, it.title, it.max_weight) for it in offers] == [
        (name, case.family, name, 4.0) for name, case in CASES.items()
    ]


def test_weavectl_takes_loras_and_lists_them(served: Served, tmp_path: Path) -> None:
    options = ("--model=sd1", "--steps=1", "--width=64", "--height=64", "--lora=sd1-peft:-0.5", "--lora", "sd1-kohya")
    ended = weavectl(served.daemon, "generate", PROMPT, *options, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    text = Image.open(tmp_path / "weave.png").text["loras"]  # type: ignore[attr-defined]
    assert text == '[{"id":"sd1-peft","weight":-0.5},{"id":"sd1-kohya","weight":1.0}]'
    listed = weavectl(served.daemon, "models").stdout.splitlines()
    assert "  sd1-peft              sd1         sd1-peft (LoRA, weight up to 4)" in listed
    wrong = weavectl(served.daemon, "generate", PROMPT, "--lora=sd1-peft:much", folder=tmp_path)
    assert wrong.returncode == 2 and "'much' is not a finite number" in wrong.stderr
    checked = weavectl(served.daemon, "check-config")
    assert checked.returncode == 0, checked.stdout
    assert "ok    lora sd1-peft: " in weavectl(served.daemon, "doctor").stdout
