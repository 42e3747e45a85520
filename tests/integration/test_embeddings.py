"""Images with embeddings equal those of diffusers that has loaded them; without them nothing has changed."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tests.integration.test_weavectl import weavectl
from tests.support.daemon import Daemon
from tests.support.embeddings import made
from tests.support.generation import generate, images, pixels
from tests.support.loras import KOHYA, Lora
from tests.support.reference import Reference, arguments, make_small_model, served_like_here, write_index
from weave.client import Client, RequestedLora, WeaveError
from weave.protocol.client_messages import Done, EncoderTokens, Progress

STEPS, SEED, SCALE, WIDTH = 2, 5, 4.0, 32
PAIR = ("clip_l", "clip_g")
EMBEDDINGS = {
    "sd1": {
        "one": made("emb_params", shape=(1, WIDTH), seed=1),
        "flat": made("<cat-toy>", shape=(WIDTH,), seed=2),
        "my-style_2": made("<style>", shape=(3, WIDTH), seed=3),
        "half": made("emb_params", shape=(2, WIDTH), dtype=torch.float16, seed=4),
        "half_1": made("emb_params", shape=(1, WIDTH), seed=5),
        "long": made("emb_params", shape=(25, WIDTH), seed=6),
        "red": made("emb_params", shape=(2, WIDTH), seed=11),
    },
    "sd2": {"other": made("emb_params", shape=(2, WIDTH), seed=7)},
    "sdxl": {
        "single": made(*PAIR, shape=(1, WIDTH), seed=8),
        "several": made(*PAIR, shape=(4, WIDTH), seed=9),
        "trained": made("text_encoders_0", "text_encoders_1", shape=(2, WIDTH), dtype=torch.bfloat16, seed=10),
    },
}
FAMILY_OF = {name: family for family, known in EMBEDDINGS.items() for name in known}


class Served(NamedTuple):
    """A daemon with a model of each family, each embedding, and a LoRA for sd1's text encoder and UNet."""

    daemon: Daemon
    models: Path
    lora: Lora


def as_published(config: Path) -> None:
    """With this token the pooled embedding is that of the token with the largest number."""
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": 2}))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models, files = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("files")
    tables = ""
    for family in EMBEDDINGS:
        write_index(family, make_small_model(family, models / family))
        if family == "sdxl":
            as_published(models / family / "text_encoder_2" / "config.json")
        tables += f'[models.{family}]\npath = "{models / family}"\nfamily = "{family}"\n'
    for name, family in FAMILY_OF.items():
        path = EMBEDDINGS[family][name].write(files / f"{name}.safetensors")
        tables += f'[embeddings.{name}]\npath = "{path}"\nfamily = "{family}"\n'
    layers = {
        "lora_te_text_model_encoder_layers_1_mlp_fc1": "text_encoder encoder.layers.1.mlp.fc1",
        "lora_unet_conv_in": "unet conv_in",
    }
    lora = Lora(Reference("sd1", models / "sd1").pipeline, layers, KOHYA)
    tables += f'[loras.ink]\npath = "{lora.write(files / "ink.safetensors")}"\nfamily = "sd1"\n'
    with served_like_here(tables) as daemon:
        yield Served(daemon, models, lora)


def wanted(client: Client, family: str, prompt: str, *names: str, **more: Any) -> np.ndarray[Any, Any]:
    asked = {"model": family, "width": 64, "height": 64, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
    asked |= {"scheduler": "euler", **more}
    return pixels(images(generate(client, prompt, embeddings=names, **asked))[0])


def expected(
    served: Served, family: str, prompt: str, negative: str | None = None, lora: float = 0.0, **tokens: str
) -> np.ndarray[Any, Any]:
    """`tokens` are by the embeddings' names, with "_" for "-"."""
    plain = Reference(family, served.models / family)
    for name, embedding in EMBEDDINGS[family].items():
        if token := tokens.get(name.replace("-", "_")):
            embedding.load(plain.pipeline, token)
    if lora:
        served.lora.merge(plain.pipeline, lora)
    generator = torch.Generator("cpu").manual_seed(SEED)
    given = arguments(family, negative, steps=STEPS, scale=SCALE)
    return plain.generate(prompt, plain.scheduler("euler"), generator, **given)


@pytest.mark.parametrize("name", [name for name in FAMILY_OF if name not in ("long", "red")])
def test_an_image_equals_that_of_diffusers_with_the_embedding(served: Served, name: str) -> None:
    family, prompt = FAMILY_OF[name], f"a red circle, {name}, blue"
    with served.daemon.client() as client:
        before = wanted(client, family, prompt)
        found = wanted(client, family, prompt, name)
        after = wanted(client, family, prompt)
    assert np.array_equal(before, expected(served, family, prompt)) and np.array_equal(after, before)
    assert np.array_equal(found, expected(served, family, prompt, **{name.replace("-", "_"): name}))
    assert not np.array_equal(found, before)


# In the order of EMBEDDINGS, in which expected() loads them.
SEVERAL = {
    "sd1": ("one circle, my-style_2", "blue flat", ("one", "flat", "my-style_2")),
    "sdxl": ("a several circle single", "trained, several", ("single", "several", "trained")),
}


@pytest.mark.parametrize("family", SEVERAL)
def test_several_work_at_once_in_both_prompts(served: Served, family: str) -> None:
    prompt, negative, names = SEVERAL[family]
    with served.daemon.client() as client:
        found = wanted(client, family, prompt, *names, negative_prompt=negative)
        without = wanted(client, family, prompt, negative_prompt=negative)
    tokens = {name.replace("-", "_"): name for name in names}
    assert np.array_equal(found, expected(served, family, prompt, negative, **tokens))
    assert np.array_equal(without, expected(served, family, prompt, negative)) and not np.array_equal(found, without)


def test_only_whole_words_count_in_upper_case_too(served: Served) -> None:
    """diffusers refuses words of the vocabulary and confuses half_1 with half's second vector, so it gets others."""
    tokens = {"half": "xa", "half_1": "xb", "red": "xc"}
    with served.daemon.client() as client:
        found = wanted(client, "sd1", "(RED half_1) redder Half. half-red red_", "half", "half_1", "red")
    assert np.array_equal(found, expected(served, "sd1", "(xc xb) redder xa. half-red red_", **tokens))


def test_an_embedding_and_a_lora_work_in_one_job(served: Served) -> None:
    prompt = "a circle, my-style_2"
    with served.daemon.client() as client:
        before = wanted(client, "sd1", prompt)
        found = wanted(client, "sd1", prompt, "my-style_2", loras=(RequestedLora("ink", 2.0),))
        assert np.array_equal(wanted(client, "sd1", prompt), before)
    assert np.array_equal(found, expected(served, "sd1", prompt, lora=2.0, my_style_2="my-style_2"))
    assert not np.array_equal(found, expected(served, "sd1", prompt, lora=2.0))


def test_after_a_cancel_the_model_is_as_before(served: Served) -> None:
    prompt = "a circle, my-style_2"
    with served.daemon.client() as client:
        before = wanted(client, "sd1", prompt)
        asked: dict[str, Any] = {"model": "sd1", "steps": 100, "images": 8, "width": 64, "height": 64}
        running = client.generate(prompt, embeddings=("my-style_2",), **asked)
        next(answer for answer in running if isinstance(answer.event, Progress))
        running.close()  # type: ignore[attr-defined]
        assert np.array_equal(wanted(client, "sd1", prompt), before)


def test_the_vectors_count_as_tokens(served: Served) -> None:
    asked: dict[str, Any] = {"model": "sd1", "width": 64, "height": 64, "steps": 1, "embeddings": ("long", "one")}
    with served.daemon.client() as client:
        done = generate(client, "circle long", negative_prompt="long one long", **asked)[-1].event
        plain = generate(client, "circle", **asked | {"embeddings": ()})[-1].event
    assert isinstance(done, Done) and isinstance(plain, Done) and done.tokens and plain.tokens
    (circle,) = plain.tokens.prompt
    assert done.tokens.prompt == (EncoderTokens(encoder="text_encoder", used=circle.used + 25, cut=0),)
    # 51 vectors, start and end; the encoder takes 32.
    assert done.tokens.negative_prompt == (EncoderTokens(encoder="text_encoder", used=32, cut=21),)


REFUSED = {
    "unlisted": (("none",), "out_of_bounds", "names one that this model's family does not have"),
    "a path": (("/etc/passwd",), "out_of_bounds", "names one that this model's family does not have"),
    "another family's": (("other",), "out_of_bounds", "names one that this model's family does not have"),
    "twice": (("one", "one"), "invalid_request", "embeddings names one twice"),
    "nine": (tuple(f"x{n}" for n in range(9)), "out_of_bounds", "embeddings is 9; it must be from 0 to 8"),
    "in no prompt": (("one", "flat"), "invalid_request", "names flat, which neither the prompt nor the negative"),
    "in a longer word": (("one", "half"), "invalid_request", "names half, which neither the prompt nor the negative"),
}


@pytest.mark.parametrize("names, code, message", REFUSED.values(), ids=REFUSED)
def test_a_bad_list_is_refused_by_name(served: Served, names: tuple[str, ...], code: str, message: str) -> None:
    with served.daemon.client() as client, pytest.raises(WeaveError, match=message) as refused:
        wanted(client, "sd1", "one circle", *names, negative_prompt="half-red half_1 halfs")
    assert (refused.value.code, refused.value.error.field) == (code, "embeddings")


def test_clients_find_the_embeddings_with_the_models(served: Served) -> None:
    with served.daemon.client() as client:
        offers = client.list_models().embeddings
        assert "embeddings" in client.status().features
    assert [(it.id, it.family, it.title) for it in offers] == [(name, it, name) for name, it in FAMILY_OF.items()]


def test_weavectl_takes_embeddings_and_lists_them(served: Served, tmp_path: Path) -> None:
    options = ("--model=sd1", "--steps=1", "--width=64", "--height=64", "--embedding=half", "--embedding", "one")
    ended = weavectl(served.daemon, "generate", "one half", *options, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    text = Image.open(io.BytesIO((tmp_path / "weave.png").read_bytes())).text  # type: ignore[attr-defined]
    assert (text["prompt"], text["embeddings"]) == ("one half", '["half","one"]')
    assert "  half                  sd1         half (embedding)" in weavectl(served.daemon, "models").stdout
    checked = weavectl(served.daemon, "check-config")
    assert checked.returncode == 0, checked.stdout
    assert "ok    embedding half: " in weavectl(served.daemon, "doctor").stdout
