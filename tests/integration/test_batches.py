"""`batch`: the images of one pass equal those of one call of diffusers that decodes them one at a time (VAE slicing),
for every family. `enlarge`: the second pass equals diffusers' image-to-image on the enlarged image."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs
from PIL import Image

from tests.support.daemon import Daemon
from tests.support.generation import generate, images, pixels
from tests.support.reference import FROM_TEXT, Reference, arguments, make_small_model, served_like_here, write_index
from weave.client import Answer, Client, WeaveError
from weave.gpu_worker.classes import pipeline_for
from weave.models.families import FAMILIES
from weave.protocol.client_messages import Done, Preview, Progress
from weave.protocol.client_messages import Image as ImageEvent
from weave.protocol.inputs import IMAGE_TO_IMAGE
from weave.protocol.parameters import Enlarge

NAMES = tuple(name for name in FROM_TEXT if name != "sd2")  # it has sd1's pipeline
STEPS, SEED, SCALE = 3, 5, 4.0
PROMPT = "a red circle"
WANTED = {"width": 64, "height": 64, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in NAMES:
        write_index(name, make_small_model(name, folder / name))
    return folder


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Daemon]:
    tables = "".join(f'[models.{name}]\npath = "{models / name}"\nfamily = "{name}"\n' for name in NAMES)
    with served_like_here(tables + "[models.sd1.bounds]\nbatch = { max = 3 }\n", "float32") as daemon:
        yield daemon


@pytest.fixture
def client(served: Daemon) -> Iterator[Client]:
    with served.client() as connected:
        yield connected


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_one_call_of_diffusers(client: Client, models: Path, name: str) -> None:
    plain, scheduler = Reference(name, models / name), FAMILIES[name].schedulers[0]
    plain.pipeline.scheduler = plain.scheduler(scheduler)
    plain.pipeline.vae.enable_slicing()
    with torch.inference_mode():
        expected = plain.pipeline(
            prompt=PROMPT,
            num_images_per_prompt=3,
            generator=seeded(SEED, SEED + 1, SEED + 2),
            **arguments(name, None, steps=STEPS, scale=SCALE),
        ).images
    answers = generate(client, PROMPT, model=name, scheduler=scheduler, images=3, batch=3, **WANTED)
    made = [pixels(image) for image in images(answers)]
    for number in range(3):
        assert np.array_equal(made[number], np.asarray(expected[number])), number
    assert len({image.tobytes() for image in made}) == 3


def test_a_batch_differs_little_from_images_one_by_one(client: Client) -> None:
    wanted = {"model": "sd1", "scheduler": "euler_a", "images": 5, **WANTED}
    single, batches = generate(client, PROMPT, **wanted), generate(client, PROMPT, batch=3, **wanted)
    for one, other in zip(images(single), images(batches), strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 2
        assert one.event == with_size_of(other, one)
    assert steps_of(batches) == {0: [1, 2, 3], 3: [1, 2, 3]}


def with_size_of(answer: Answer, like: Answer) -> ImageEvent:
    """The event of `answer`, with the size of the other's file."""
    assert isinstance(answer.event, ImageEvent) and isinstance(like.event, ImageEvent)
    return structs.replace(answer.event, size=like.event.size)


def steps_of(answers: list[Answer]) -> dict[int, list[int]]:
    steps: dict[int, list[int]] = {}
    for answer in answers:
        if isinstance(answer.event, Progress):
            steps.setdefault(answer.event.image, []).append(answer.event.step)
    return steps


def test_a_batch_beyond_the_bound_is_refused(client: Client) -> None:
    for batch in (0, 4, -1, 2**63):
        with pytest.raises(WeaveError, match=r"batch is .*; it must be from 1 to 3"):
            generate(client, PROMPT, model="sd1", batch=batch, images=2)


def test_a_batch_larger_than_the_images_gives_all_images(client: Client) -> None:
    assert len(images(generate(client, PROMPT, model="sd1", images=2, batch=3, **WANTED))) == 2


# How many of three steps run with a strength of 0.7: flow-matching pipelines round up.
@pytest.mark.parametrize(
    ("name", "scheduler", "more"),
    [
        ("sd1", "dpmpp_2m", 2),
        ("sd1", "euler_a", 2),
        ("sd1", "pndm", 2),
        ("sdxl", "euler", 2),
        ("sd3", "flow_heun", 3),
        ("flux", "flow_euler", 3),
        ("chroma", "flow_euler", 3),
        ("z-image", "flow_euler", 3),
        ("qwen-image", "flow_euler", 3),
    ],
)
def test_enlarging_is_a_second_pass(client: Client, models: Path, name: str, scheduler: str, more: int) -> None:
    plain, given = Reference(name, models / name), arguments(name, None, steps=STEPS, scale=SCALE)
    first = Image.fromarray(plain.generate(PROMPT, plain.scheduler(scheduler), seeded(SEED)[0], **given))
    plain.pipeline.scheduler = plain.scheduler(scheduler)
    second = pipeline_for(plain.pipeline, FAMILIES[name], IMAGE_TO_IMAGE)
    given |= {"width": 96, "height": 96, "image": first.resize((96, 96), Image.Resampling.LANCZOS), "strength": 0.7}
    taken = inspect.signature(second.__call__).parameters
    with torch.inference_mode():
        expected = second(
            prompt=PROMPT, generator=seeded(SEED)[0], **{name: value for name, value in given.items() if name in taken}
        ).images[0]
    answers = generate(
        client,
        PROMPT,
        model=name,
        scheduler=scheduler,
        enlarge=Enlarge(scale=1.5, strength=0.7),
        preview_every=STEPS + more,
        **WANTED,
    )
    (image,) = images(answers)
    assert np.array_equal(pixels(image), np.asarray(expected))
    assert isinstance(image.event, ImageEvent) and (image.event.width, image.event.height) == (96, 96)
    assert steps_of(answers) == {0: list(range(1, STEPS + more + 1))}
    (preview,) = [answer for answer in answers if isinstance(answer.event, Preview)]
    assert np.array_equal(pixels(preview), pixels(image))


def test_each_image_of_a_batch_is_enlarged(client: Client) -> None:
    wanted = {"model": "sd1", "enlarge": Enlarge(scale=1.5, strength=0.7), "images": 2, **WANTED}
    answers, one_by_one = generate(client, PROMPT, batch=2, **wanted), generate(client, PROMPT, **wanted)
    assert steps_of(answers) == {0: [1, 2, 3, 4, 5], 1: [1, 2]}
    for one, other in zip(images(answers), images(one_by_one), strict=True):
        assert pixels(one).shape == (96, 96, 3)
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 3
    assert isinstance(answers[-1].event, Done)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"enlarge": Enlarge(scale=0.5)}, "enlarge.scale is 0.5; it must be from 1.0 to 4.0"),
        ({"enlarge": Enlarge(scale=4.5)}, "enlarge.scale is 4.5; it must be from 1.0 to 4.0"),
        ({"enlarge": Enlarge(strength=1.5)}, "enlarge.strength is 1.5; it must be from 0.0 to 1.0"),
        ({"enlarge": Enlarge(strength=0.1)}, "enlarge.strength is 0.1; with steps 3 it must be at least 0.333333"),
        ({"enlarge": Enlarge(scale=4.0), "width": 512}, "enlarge.width is 2048; it must be from 64 to 1024"),
        ({"enlarge": Enlarge(), "model": "krea2"}, "enlarge is for models whose tasks include image-to-image"),
    ],
)
def test_an_enlargement_out_of_bounds_is_refused(client: Client, wanted: dict[str, object], message: str) -> None:
    with pytest.raises(WeaveError) as caught:
        generate(client, PROMPT, **{"model": "sd1", **WANTED, **wanted})
    assert message in str(caught.value)


def test_only_whole_images_are_enlarged(client: Client) -> None:
    image = Image.new("RGB", (64, 64))
    with pytest.raises(WeaveError, match="enlarge is not for requests with mask"):
        generate(client, PROMPT, model="sd1", image=image, mask=image, enlarge=Enlarge(), **WANTED)
