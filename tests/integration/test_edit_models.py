"""Qwen-Image-Edit: the images equal those of diffusers' own classes in every pixel, and what these classes cannot take
is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.test_weavectl import weavectl
from tests.support.daemon import Daemon
from tests.support.from_images import FromImages, noise
from tests.support.generation import generate, images, pixels
from tests.support.reference import Reference, arguments, make_small_model, served_like_here, write_index
from tests.support.tiny_parts import qwen_tokenizer
from weave.client import Client, WeaveError
from weave.gpu_worker.pipelines import adapter_of
from weave.models.families import FAMILIES
from weave.protocol.client_messages import Done, Preview, Progress
from weave.protocol.errors import ErrorCode
from weave.protocol.inputs import REFERENCES

ONE, SEVERAL = "qwen-image-edit", "qwen-image-edit-plus"
PROMPT, NEGATIVE, SEED, SCALE, STEPS, WIDTH, HEIGHT = "make the circle red", "blurred", 5, 4.0, 2, 96, 64
WANTED = {"width": WIDTH, "height": HEIGHT, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
# In different shapes: each is resized, and in the second family two times.
GIVEN = {ONE: [noise(120, 80)], SEVERAL: [noise(120, 80), noise(64, 180, mode="L")]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in GIVEN:
        write_index(name, make_small_model(name, folder / name))
    return folder


def tables(models: Path) -> str:
    return "".join(f'[models.{name}]\npath = "{models / name}"\nfamily = "{name}"\n' for name in GIVEN)


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Daemon]:
    with served_like_here(tables(models), "float32") as daemon:
        yield daemon


@pytest.fixture
def client(served: Daemon) -> Iterator[Client]:
    with served.client() as connected:
        yield connected


def made_of(client: Client, name: str, prompt: str = PROMPT, **more: Any) -> np.ndarray[Any, Any]:
    wanted = {"references": GIVEN[name], **WANTED, **more}
    return pixels(images(generate(client, prompt, model=name, **wanted))[0])


def theirs(models: Path, name: str, dtype: str, negative: str | None) -> np.ndarray[Any, Any]:
    plain = Reference(name, models / name, dtype)
    given = [image.convert("RGB") for image in GIVEN[name]]
    wanted = {**arguments(name, negative, steps=STEPS, scale=SCALE), "width": WIDTH, "height": HEIGHT}
    made = FromImages(plain, name, REFERENCES).generate(
        plain.own, SEED, prompt=PROMPT, image=given[0] if name == ONE else given, **wanted
    )
    return np.asarray(made)


@pytest.mark.parametrize(("name", "negative"), [(ONE, NEGATIVE), (SEVERAL, None)])
def test_an_edited_image_equals_that_of_diffusers(
    client: Client, models: Path, name: str, negative: str | None
) -> None:
    more = {} if negative is None else {"negative_prompt": negative}
    answers = generate(client, PROMPT, model=name, references=GIVEN[name], preview_every=1, **WANTED, **more)
    made = pixels(images(answers)[0])
    assert np.array_equal(made, theirs(models, name, "float32", negative)) and made.std() > 0
    assert [answer.event.step for answer in answers if isinstance(answer.event, Progress)] == [1, 2]
    assert np.array_equal(pixels([one for one in answers if isinstance(one.event, Preview)][-1]), made)


@pytest.mark.parametrize(("name", "dtype"), [(ONE, "float16"), (SEVERAL, "bfloat16")])
def test_half_precision_equals_diffusers_with_streamed_weights(models: Path, name: str, dtype: str) -> None:
    streamed = tables(models).replace("[models.", 'memory = "streamed"\n[models.').partition("\n")[2]
    with served_like_here(f'{streamed}memory = "streamed"\n', dtype) as daemon, daemon.client() as client:
        assert np.array_equal(made_of(client, name), theirs(models, name, dtype, None))


def test_a_batch_equals_images_one_by_one(client: Client) -> None:
    wanted = {**WANTED, "images": 2, "references": GIVEN[SEVERAL][:1], "cfg_scale": 1.0}
    single, batch = (images(generate(client, PROMPT, model=SEVERAL, **wanted, batch=size)) for size in (1, 2))
    for one, other in zip(single, batch, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 2


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "none": (SEVERAL, {"references": []}, "references is 0; it must be from 1 to 4"),
    "too many": (ONE, {"references": [noise(64, 64)] * 2}, "references is 2; it must be from 1 to 1"),
    "an image": (
        ONE,
        {"image": noise(64, 64)},
        "image is for models whose tasks include image-to-image; .* references",
    ),
    "enlarged": (SEVERAL, {"enlarge": {"scale": 2.0}}, "enlarge is for models whose tasks"),
    "a mark": (SEVERAL, {"prompt": "a <|image_pad|>"}, "contains <|image_pad|> or"),
    "a mark of videos": (ONE, {"negative_prompt": "<|video_pad|>"}, "contains <|image_pad|> or"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_pipelines_cannot_do_is_refused(client: Client, case: str) -> None:
    name, wanted, message = REFUSED[case]
    with pytest.raises(WeaveError, match=message) as refused:
        made_of(client, name, **wanted)
    assert refused.value.code is ErrorCode.OUT_OF_BOUNDS


def test_tokens_are_counted_and_only_what_is_cut_has_no_effect(client: Client) -> None:
    family = FAMILIES[SEVERAL]
    around = len(family.prompt_template.format("").replace("<|im_start|>", "?").replace("<|im_end|>", "?"))
    room = 1024 + family.free_tokens - around
    wanted = {"model": SEVERAL, **WANTED, "cfg_scale": 20.0, "references": GIVEN[SEVERAL][:1], "format": "raw"}

    def made_and_counted(prompt: str) -> tuple[bytes, list[tuple[int, int]]]:
        answers = generate(client, prompt, **wanted)
        (tokens,) = [answer.event.tokens for answer in answers if isinstance(answer.event, Done)]
        assert tokens
        return bytes(images(answers)[0].data), [(one.used, one.cut) for one in tokens.prompt]

    fits, full = made_and_counted("x" * room)
    same, longer = made_and_counted("x" * room + "yz")
    other, short = made_and_counted("x" * (room - 99) + "y" * 98)
    assert (full, longer, short) == ([(around + room, 0)], [(around + room, 2)], [(around + room - 1, 0)])
    assert fits == same != other


def test_a_prompt_is_cut_before_the_first_token_beyond_the_limit() -> None:
    tokenizer, adapter = qwen_tokenizer(), adapter_of(SEVERAL)
    room = 1024 + 64 - len(tokenizer(FAMILIES[SEVERAL].prompt_template.format("")).input_ids)
    full, euro = "x" * room, "x" * (room - 1) + "\u20ac"  # a character of three bytes, each of them a token
    for text, kept in (
        (full, full),
        (full + "yz", full),
        (euro, full[:-1]),
        (full[:-3] + "\u20ac", full[:-3] + "\u20ac"),
    ):
        assert adapter._cut(tokenizer, text) == kept  # type: ignore[attr-defined]


def test_models_list_no_task_but_references(client: Client) -> None:
    offers = {offer.id: offer for offer in client.list_models().models}
    assert {name: offer.tasks for name, offer in offers.items()} == {name: (REFERENCES,) for name in GIVEN}
    assert [offers[name].bounds.references.min for name in GIVEN] == [1, 1]


def test_weavectl_repeats_an_edited_image(served: Daemon, tmp_path: Path) -> None:
    GIVEN[ONE][0].save(tmp_path / "given.png")
    options = ("--model", ONE, "--width=64", "--height=64", "--steps=2", "--reference=given.png", "-o", "a.png")
    first = weavectl(served, "generate", PROMPT, *options, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    again = weavectl(served, "repeat", "a.png", "--image=given.png", "-o", "b.png", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
