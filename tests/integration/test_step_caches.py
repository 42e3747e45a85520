"""`cache`: an image with a step cache equals that of diffusers with the same one, and later images do not change."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from PIL import Image

from tests.support.daemon import Daemon
from tests.support.generation import generate, images, pixels
from tests.support.reference import Reference, arguments, make_small_model, served_like_here, write_index
from weave.client import Client, WeaveError
from weave.models.families import FAMILIES
from weave.protocol.client_messages import Progress
from weave.protocol.errors import ErrorCode
from weave.protocol.parameters import Enlarge

CASES = [(family.name, cache) for family in FAMILIES.values() for cache in family.caches]
STEPS, SEED, SCALE = 10, 5, 4.0
PROMPT = "a red circle"
WANTED = {"width": 64, "height": 64, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
IMAGE = Image.new("RGB", (64, 64), "navy")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in {name for name, _ in CASES} | {"sd1"}:
        write_index(name, make_small_model(name, folder / name))
    return folder


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Daemon]:
    tables = "".join(f'[models.{path.name}]\npath = "{path}"\nfamily = "{path.name}"\n' for path in models.iterdir())
    cached = f'[models.cached]\npath = "{models / "flux"}"\nfamily = "flux"\ndefaults = {{ cache = "taylorseer" }}\n'
    with served_like_here(tables + cached, "float32") as daemon:
        yield daemon


@pytest.fixture
def client(served: Daemon) -> Iterator[Client]:
    with served.client() as connected:
        yield connected


def configured(cache: str) -> Any:
    if cache == "first_block":
        return FirstBlockCacheConfig(threshold=0.05)
    if cache == "taylorseer":
        return TaylorSeerCacheConfig(taylor_factors_dtype=torch.float32)
    return MagCacheConfig(num_inference_steps=STEPS, mag_ratios=FLUX_MAG_RATIOS)


def made(client: Client, **wanted: Any) -> np.ndarray:
    (image,) = images(generate(client, PROMPT, **{**WANTED, **wanted}))
    return pixels(image)


@pytest.mark.parametrize("negative", [None, "blue"])
@pytest.mark.parametrize("name, cache", CASES)
def test_an_image_equals_that_of_diffusers(
    client: Client, models: Path, name: str, cache: str, negative: str | None
) -> None:
    plain, scheduler = Reference(name, models / name), FAMILIES[name].schedulers[0]

    def expected() -> np.ndarray:
        generator = torch.Generator().manual_seed(SEED)
        given = arguments(name, negative, steps=STEPS, scale=SCALE)
        return plain.generate(PROMPT, plain.scheduler(scheduler), generator, **given)

    uncached = expected()
    plain.pipeline.transformer.enable_cache(configured(cache))
    cached = expected()
    wanted = {"model": name} | ({"negative_prompt": negative} if negative else {})
    for again in range(2):
        assert np.array_equal(made(client, cache=cache, **wanted), cached), again
        assert np.array_equal(made(client, **wanted), uncached), again
    if cache != "first_block":  # this model's first block changes too much from step to step
        assert not np.array_equal(cached, uncached)


def test_a_cancelled_job_leaves_no_cache(served: Daemon, client: Client) -> None:
    expected = made(client, model="flux")
    with served.client() as leaving:
        for answer in leaving.generate(PROMPT, model="flux", cache="taylorseer", **{**WANTED, "steps": 100}):
            if isinstance(answer.event, Progress) and answer.event.step == 5:
                break
    assert np.array_equal(made(client, model="flux"), expected)


def test_a_models_default_is_used_for_text_to_image_only(served: Daemon) -> None:
    with served.client() as client:
        assert np.array_equal(made(client, model="cached"), made(client, model="flux", cache="taylorseer"))
        assert np.array_equal(made(client, model="cached", cache="none"), made(client, model="flux"))
        from_image = {"image": IMAGE, "strength": 0.5}
        assert np.array_equal(made(client, model="cached", **from_image), made(client, model="flux", **from_image))


def test_the_second_pass_of_enlarge_has_no_cache(client: Client) -> None:
    enlarge = Enlarge(scale=2.0, strength=0.5)
    first = made(client, model="flux", cache="taylorseer")
    (image,) = images(generate(client, PROMPT, **WANTED, model="flux", cache="taylorseer", enlarge=enlarge))
    large = Image.fromarray(first).resize((128, 128), Image.Resampling.LANCZOS)
    from_image = {**WANTED, "width": 128, "height": 128, "image": large, "strength": 0.5}
    (again,) = images(generate(client, PROMPT, model="flux", **from_image))
    assert np.array_equal(pixels(image), pixels(again))


@pytest.mark.parametrize(
    "wanted, code, said",
    [
        ({"model": "flux2-klein", "cache": "magcache"}, ErrorCode.OUT_OF_BOUNDS, "one of none, taylorseer"),
        ({"model": "sd1", "cache": "taylorseer"}, ErrorCode.OUT_OF_BOUNDS, "one of none"),
        ({"model": "flux", "cache": "fast"}, ErrorCode.INVALID_REQUEST, "cache"),
        ({"model": "flux", "cache": "taylorseer", "image": IMAGE}, ErrorCode.INVALID_REQUEST, "with image"),
    ],
)
def test_a_bad_cache_is_refused_by_name(client: Client, wanted: dict[str, Any], code: ErrorCode, said: str) -> None:
    with pytest.raises(WeaveError) as refused:
        generate(client, PROMPT, **WANTED, **wanted)
    assert refused.value.code is code and said in str(refused.value)
