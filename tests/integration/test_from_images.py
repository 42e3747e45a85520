"""Image-to-image, inpainting and reference images, for each family: the images equal those of diffusers' own class for
the task in every pixel, except that unmasked pixels are the client's."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.daemon import Daemon
from tests.support.from_images import FromImages, mask, noise
from tests.support.generation import generate, images, pixels
from tests.support.reference import FROM_TEXT, Reference, arguments, make_small_model, served_like_here, write_index
from weave.client import Answer, Client, WeaveError
from weave.gpu_worker.classes import pipeline_for
from weave.models.families import FAMILIES
from weave.protocol.client_messages import Preview, Progress
from weave.protocol.errors import ErrorCode
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING, REFERENCES

NAMES = tuple(name for name in FROM_TEXT if FAMILIES[name].pipelines and name != "sd2")  # it has sd1's classes
STEPS, SEED, SCALE, STRENGTH, PADDING = 3, 5, 4.0, 0.5, 6
PROMPT, NEGATIVE = "a red circle", "blurred, blue"
WIDTH, HEIGHT = 96, 64
WANTED = {"width": WIDTH, "height": HEIGHT, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
# Their padding_mask_crop is missing, lacks the last step, lacks the VAE's shift, or works at the image's own size.
BY_HAND = ("z-image", "chroma", "sd3", "flux2-klein")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in NAMES:
        write_index(name, make_small_model(name, folder / name))
    return folder


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Daemon]:
    tables = "".join(f'[models.{name}]\npath = "{models / name}"\nfamily = "{name}"\n' for name in NAMES)
    kontext = f'[models.kontext]\npath = "{models / "flux"}"\nfamily = "flux"\nreferences = true\n'
    with served_like_here(tables + kontext, "float32") as daemon:
        yield daemon


@pytest.fixture
def client(served: Daemon) -> Iterator[Client]:
    with served.client() as connected:
        yield connected


@pytest.fixture(scope="module")
def plain_of(models: Path) -> Callable[[str], Reference]:
    return functools.cache(lambda name: Reference(name, models / name))


def made_of(client: Client, name: str, **more: Any) -> np.ndarray[Any, Any]:
    """The pixels of the one image."""
    return pixels(images(generate(client, PROMPT, model=name, **{**WANTED, **more}))[0])


def plainly(name: str, negative: str | None = None) -> dict[str, Any]:
    """The arguments of diffusers' call that do not depend on the images."""
    given = {"prompt": PROMPT, "strength": STRENGTH, **arguments(name, negative, steps=STEPS, scale=SCALE)}
    if (length := FAMILIES[name].max_sequence_length) is not None:  # Chroma's classes have other defaults
        given["max_sequence_length"] = length
    return given | {"width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize("name", NAMES)
def test_each_task_equals_diffusers(client: Client, plain_of: Callable[[str], Reference], name: str) -> None:
    plain, family = plain_of(name), FAMILIES[name]
    # The prompt alone gives the same image before and after: the tasks share the components and change none.
    alone = made_of(client, name, steps=2)
    if IMAGE_TO_IMAGE in family.pipelines:
        equals_image_to_image(client, plain, name)
    if INPAINTING in family.pipelines:
        equals_inpainting(client, plain, name)
        equals_padded_inpainting(client, plain, name)
    for task in family.pipelines:
        shares_the_components(plain, name, task)
        if task in family.tasks:
            equals_one_by_one(client, name, task)
    assert np.array_equal(made_of(client, name, steps=2), alone)


def equals_image_to_image(client: Client, plain: Reference, name: str) -> None:
    image, scheduler = noise(WIDTH, HEIGHT), FAMILIES[name].schedulers[0]
    it = FromImages(plain, name, IMAGE_TO_IMAGE)
    expected = it.generate(plain.scheduler(scheduler), SEED, image=image, **plainly(name, NEGATIVE))
    wanted = {"image": image, "strength": STRENGTH, "negative_prompt": NEGATIVE, "scheduler": scheduler}
    answers = generate(client, PROMPT, model=name, preview_every=1, **WANTED, **wanted)
    assert np.array_equal(pixels(images(answers)[0]), np.asarray(expected))
    check_progress(answers, name)


def equals_inpainting(client: Client, plain: Reference, name: str) -> None:
    image, where, scheduler = noise(WIDTH, HEIGHT), mask(WIDTH, HEIGHT), FAMILIES[name].schedulers[0]
    it = FromImages(plain, name, INPAINTING)
    theirs = it.generate(plain.scheduler(scheduler), SEED, image=image, mask_image=where, **plainly(name))
    wanted = {"image": image, "mask": where, "strength": STRENGTH, "scheduler": scheduler}
    answers = generate(client, PROMPT, model=name, preview_every=1, **WANTED, **wanted)
    expected = np.where(np.asarray(where)[..., None] > 0, np.asarray(theirs), np.asarray(image))
    assert np.array_equal(pixels(images(answers)[0]), expected)
    check_progress(answers, name)
    # A preview is pasted in place too.
    kept = np.asarray(where) == 0
    for preview in (answer for answer in answers if isinstance(answer.event, Preview)):
        assert np.array_equal(pixels(preview)[kept], np.asarray(image)[kept])


def equals_padded_inpainting(client: Client, plain: Reference, name: str) -> None:
    image, where, scheduler = noise(150, 110), mask(150, 110), FAMILIES[name].schedulers[0]
    it, own = FromImages(plain, name, INPAINTING), plain.scheduler(scheduler)
    if name in BY_HAND:
        expected = it.repaint(image, where, PADDING, scheduler=own, seed=SEED, **plainly(name))
    else:
        given = {"image": image, "mask_image": where, "padding_mask_crop": PADDING}
        expected = it.generate(own, SEED, **given, **plainly(name))
    wanted = {"image": image, "mask": where, "mask_padding": PADDING, "strength": STRENGTH, "scheduler": scheduler}
    assert np.array_equal(made_of(client, name, **wanted), np.asarray(expected))


def shares_the_components(plain: Reference, name: str, task: str) -> None:
    own = plain.pipeline
    made = pipeline_for(own, FAMILIES[name], task)
    # Each has a scheduler's config of its own, and for a pass the scheduler that text-to-image would have.
    assert all(made.components[part] is component for part, component in own.components.items()), task


def equals_one_by_one(client: Client, name: str, task: str) -> None:
    """A batch: each image is encoded with the noise of its own seed."""
    given: dict[str, Any] = {"references": [noise(64, 64)]} if task == REFERENCES else {"image": noise(64, 64)}
    given |= {"mask": mask(64, 64)} if task == INPAINTING else {}
    wanted = {**WANTED, "width": 64, "height": 64, "steps": 2, "images": 2, **given}
    single, batch = (generate(client, PROMPT, model=name, **wanted, batch=size) for size in (1, 2))
    for one, other in zip(images(single), images(batch), strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 2, task


def check_progress(answers: list[Answer], name: str) -> None:
    """As the pipelines round: for flow matching up, else down."""
    ran = 1 if name in ("sd1", "sdxl") else 2
    steps = [(answer.event.step, answer.event.steps) for answer in answers if isinstance(answer.event, Progress)]
    assert steps == [(step, ran) for step in range(1, ran + 1)]
    *_, last = (answer for answer in answers if isinstance(answer.event, Preview))
    assert np.array_equal(pixels(last), pixels(images(answers)[0]))


KINDS = {
    "sd1": ("ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "pndm", "lcm", "tcd", "dpmpp_2m_karras"),
    "sd3": ("flow_euler", "flow_heun"),
}


@pytest.mark.parametrize(("name", "scheduler"), [(name, kind) for name, kinds in KINDS.items() for kind in kinds])
def test_each_scheduler_equals_diffusers(
    client: Client, plain_of: Callable[[str], Reference], name: str, scheduler: str
) -> None:
    """From the middle, and with full strength from the start."""
    plain, image, where = plain_of(name), noise(WIDTH, HEIGHT), mask(WIDTH, HEIGHT)
    wanted = {"image": image, "scheduler": scheduler, "steps": 4}
    for strength in (0.5, 1.0):
        given = {**plainly(name), "image": image, "strength": strength, "num_inference_steps": 4}
        it = FromImages(plain, name, IMAGE_TO_IMAGE)
        expected = np.asarray(it.generate(plain.scheduler(scheduler), SEED, **given))
        assert np.array_equal(made_of(client, name, strength=strength, **wanted), expected), strength
        it = FromImages(plain, name, INPAINTING)
        theirs = it.generate(plain.scheduler(scheduler), SEED, mask_image=where, **given)
        expected = np.where(np.asarray(where)[..., None] > 0, np.asarray(theirs), np.asarray(image))
        assert np.array_equal(made_of(client, name, strength=strength, mask=where, **wanted), expected), strength


def test_reference_images_equal_diffusers(client: Client, plain_of: Callable[[str], Reference]) -> None:
    references = [noise(120, 80), noise(70, 90)]
    for name, family, given, sizes, steps in (
        ("flux2-klein", "flux2-klein", references, {}, 2),
        ("kontext", "flux", references[:1], {"max_area": WIDTH * HEIGHT}, 1),
    ):
        plain = plain_of(family)
        it = FromImages(plain, family, REFERENCES)
        scheduler = FAMILIES[family].schedulers[0]
        wanted = {**plainly(family), **sizes, "num_inference_steps": steps}
        image = given if family == "flux2-klein" else given[0]
        expected = it.generate(plain.scheduler(scheduler), SEED, image=image, **wanted)
        assert np.array_equal(made_of(client, name, references=given, steps=steps), np.asarray(expected)), name
        assert not np.array_equal(made_of(client, name, steps=steps), np.asarray(expected)), name


def test_models_list_the_tasks_that_they_can_do(client: Client) -> None:
    tasks = {offer.id: offer.tasks for offer in client.list_models().models}
    assert REFERENCES in tasks["kontext"] and REFERENCES in tasks["flux2-klein"]
    assert [name for name in tasks if REFERENCES not in tasks[name]] == [n for n in NAMES if n != "flux2-klein"]


@pytest.mark.parametrize("padding", [None, 0, 6, 1024])
@pytest.mark.parametrize("size", [(37, 91), (200, 70), (64, 64)])
def test_unmasked_pixels_are_the_original(client: Client, size: tuple[int, int], padding: int | None) -> None:
    for image in (noise(*size), noise(*size, mode="L")):
        where = mask(*size)
        made = made_of(client, "sd1", image=image, mask=where, mask_padding=padding, strength=1.0)
        original = image.convert("RGB")
        if padding is None:  # in the requested size
            original = original.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
            where = where.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        assert made.shape == np.asarray(original).shape
        kept, repainted = np.asarray(where) == 0, np.asarray(where) == 255
        assert np.array_equal(made[kept], np.asarray(original)[kept])
        assert not np.array_equal(made[repainted], np.asarray(original)[repainted])


def test_a_mask_without_white_keeps_the_whole_image(client: Client) -> None:
    image, where = noise(WIDTH, HEIGHT), Image.new("L", (WIDTH, HEIGHT))
    for padding in (None, 0, 32, 48, 1024):
        made = made_of(client, "sd1", image=image, mask=where, mask_padding=padding, steps=2)
        assert np.array_equal(made, np.asarray(image)), padding


def test_grey_parts_of_a_mask_blend(client: Client) -> None:
    image, grey = noise(WIDTH, HEIGHT), Image.new("L", (WIDTH, HEIGHT), 128)
    whole = made_of(client, "sd1", image=image, mask=Image.new("L", (WIDTH, HEIGHT), 255)).astype(int)
    made = made_of(client, "sd1", image=image, mask=grey)
    assert np.abs(made - (whole * 128 + np.asarray(image).astype(int) * 127) / 255).max() <= 2


def test_an_image_of_another_size_is_resized_first(client: Client) -> None:
    image = noise(50, 130)
    resized = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    for name in ("sd1", "z-image"):
        made = made_of(client, name, image=image)
        assert np.array_equal(made, made_of(client, name, image=resized))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "two references of Kontext": ("kontext", {"references": [noise(64, 64)] * 2}, "references is 2"),
    "references of another model": ("flux", {"references": [noise(64, 64)]}, "references is for models whose tasks"),
    "a small reference": ("flux2-klein", {"references": [noise(63, 64)]}, "references.width is 63"),
    "a thin reference": ("flux2-klein", {"references": [noise(64, 513)]}, "8 times the other"),
    "references and an image": (
        "flux2-klein",
        {"references": [noise(64, 64)], "image": noise(64, 64), "mask": mask(64, 64)},
        "exclude each other",
    ),
    "an image without its task": ("flux2-klein", {"image": noise(64, 64)}, "image is for models whose tasks"),
    "more than the pipeline takes": (
        "flux2-klein",
        {"image": noise(64, 64), "mask": mask(64, 64), "width": 1040, "height": 1024},
        "inpainting_pixels is 1064960",
    ),
    "too thin to be enlarged": (
        "sd1",
        {"image": noise(1, 100), "mask": mask(1, 100), "mask_padding": 0, "width": 64, "height": 64},
        "image is 1x100, too thin",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_pipelines_cannot_do_is_refused(client: Client, case: str) -> None:
    name, wanted, message = REFUSED[case]
    with pytest.raises(WeaveError, match=message) as refused:
        made_of(client, name, **wanted)
    assert refused.value.code in (ErrorCode.OUT_OF_BOUNDS, ErrorCode.INVALID_REQUEST) and refused.value.error.field


def test_a_cancelled_job_leaves_nothing_behind(served: Daemon, client: Client) -> None:
    alone = made_of(client, "sd1")
    wanted = {"image": noise(WIDTH, HEIGHT), "mask": mask(WIDTH, HEIGHT), "strength": 1.0}
    answers = client.generate(PROMPT, model="sd1", **{**WANTED, "steps": 100}, **wanted)
    job = next(answer.event.job for answer in answers if hasattr(answer.event, "job"))
    next(answer for answer in answers if isinstance(answer.event, Progress))
    with served.client() as other:
        other.cancel(job=job)
    with pytest.raises(WeaveError) as cancelled:
        list(answers)
    assert cancelled.value.code is ErrorCode.CANCELLED
    assert np.array_equal(made_of(client, "sd1"), alone)
