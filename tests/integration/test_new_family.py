"""A family is added as CONTRIBUTING.md describes, to a build of the daemon: a description, an adapter, a line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers

from tests.support import bria, tiny_models
from tests.support.builds import build
from tests.support.daemon import Daemon
from tests.support.generation import generate, images, pixels
from tests.support.reference import one_thread
from tests.support.seams import constant
from weave.config.load import load
from weave.config.schema import ConfigError
from weave.models.families import FAMILIES
from weave.protocol.client_messages import Done, EncoderTokens, Preview, Tokens

FILES = Path(bria.__file__).parent
ADDED: dict[str, Path | str] = {
    "models/families/bria.py": FILES / "family.py",
    "gpu_worker/pipelines/bria.py": FILES / "adapter.py",
}
REGISTERED = (constant("models/families/__init__.py", "_MODULES", '(*_MODULES, "bria")'),)
PROMPT, SEED, STEPS = "a red circle", 5, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make("bria", tmp_path_factory.mktemp("models") / "bria")


def config(model: Path) -> str:
    return f'[device]\ndevice = "cpu"\nthreads = 1\n[models.bria]\npath = "{model}"\nfamily = "bria"\n'


@pytest.fixture(scope="module")
def daemon(model: Path) -> Iterator[Daemon]:
    started = Daemon(config(model), command=build(REGISTERED, ADDED))
    yield started.wait_until_serving()
    assert started.stop() == 0


@pytest.mark.parametrize("asked", [{}, {"negative_prompt": "blurred"}, {"cfg_scale": 1.0}], ids=str)
def test_an_added_family_gives_the_image_of_diffusers(daemon: Daemon, model: Path, asked: dict[str, Any]) -> None:
    wanted = {"model": "bria", "width": 96, "height": 64, "steps": STEPS, "seed": SEED, "cfg_scale": 4.0}
    with daemon.client() as client:
        answers = generate(client, PROMPT, preview_every=STEPS, **{**wanted, **asked})
    expected = plain(model, **asked)
    assert expected.std() > 0 and expected.shape == (64, 96, 3)
    assert np.array_equal(pixels(images(answers)[0]), expected)
    (preview,) = [answer for answer in answers if isinstance(answer.event, Preview)]
    assert np.array_equal(pixels(preview), expected)
    (done,) = [answer.event for answer in answers if isinstance(answer.event, Done)]
    # T5 uses one token per character, one for a leading space and one for the end.
    negative = asked.get("negative_prompt", "")
    assert done.tokens == Tokens(prompt=counted(PROMPT), negative_prompt=counted(negative) if negative else ())


def counted(prompt: str) -> tuple[EncoderTokens, ...]:
    return (EncoderTokens(encoder="text_encoder", used=len(prompt) + 2, cut=0),)


def plain(model: Path, cfg_scale: float = 4.0, **asked: Any) -> np.ndarray[Any, Any]:
    classes = {
        "tokenizer": transformers.T5TokenizerFast,
        "text_encoder": transformers.T5EncoderModel,
        "transformer": diffusers.BriaTransformer2DModel,
        "vae": diffusers.AutoencoderKL,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
    }
    components = {part: classes[part].from_pretrained(model / part) for part in classes}
    for part in ("text_encoder", "transformer", "vae"):
        components[part]._apply(torch.clone)  # out of the mapped file, where alignment can change a pixel
    pipeline = diffusers.BriaPipeline(**components)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(SEED)
    sizes = {"width": 96, "height": 64, "num_inference_steps": STEPS}
    with one_thread(), torch.inference_mode():
        made = pipeline(PROMPT, guidance_scale=cfg_scale, generator=generator, **sizes, **asked)
    return np.asarray(made.images[0])


def test_the_product_does_not_have_the_added_family(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(config(model))
    with pytest.raises(ConfigError, match=rf"bria\.family is 'bria'; it must be one of {', '.join(FAMILIES)}$"):
        load(file)
