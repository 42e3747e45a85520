"""The tokens that each text encoder used and cut: in `done`, in the PNG, and by weavectl."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from tests.integration.test_weavectl import weavectl
from tests.support.daemon import Daemon
from tests.support.generation import generate, images
from tests.support.reference import FROM_TEXT, make_small_model
from weave.client import Client
from weave.models.families import FAMILIES
from weave.protocol.client_messages import Done

NAMES = tuple(name for name in FROM_TEXT if name != "sd2")  # it has sd1's encoder
# These CLIP tokenizers have one token per word and take 32 with start and end. T5 has one per character,
# one for a leading space and one for the end.
SHORT, LONG = "a red circle", "red circle " * 20 + "on a blue background"
MARK = r"<\|im_\w+\|>"
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def template_tokens(family: str) -> int:
    """Qwen has one token per character here, and one for each mark of the chat."""
    return len(re.sub(MARK, "?", FAMILIES[family].prompt_template.format("")))


CHAT, NO_THINKING, DESCRIBED, PREFIX = map(template_tokens, ("z-image", "flux2-klein", "qwen-image", "krea2"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("models")
    for name in NAMES:
        make_small_model(name, folder / name)
    shutil.copytree(folder / "sd3", folder / "sd3_without_t5", ignore=shutil.ignore_patterns("*_3"))
    tables = "".join(
        f'[models.{path.name}]\npath = "{path}"\nfamily = "{path.name.partition("_")[0]}"\n'
        for path in sorted(folder.iterdir())
    )
    daemon = Daemon(tables)
    try:
        yield daemon.wait_until_serving()
    finally:
        daemon.stop()


def told(client: Client, prompt: str, **wanted: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Tokens of the prompt and of the negative prompt, and all of them as in the PNG."""
    answers = generate(client, prompt, width=64, height=64, steps=2, **wanted)
    (tokens,) = [answer.event.tokens for answer in answers if isinstance(answer.event, Done)]
    assert tokens is not None
    png = Pillow.open(io.BytesIO(images(answers)[0].data))
    counted = [
        [(one.encoder, one.used, one.cut) for one in encoders] for encoders in (tokens.prompt, tokens.negative_prompt)
    ]
    return counted[0], counted[1], json.loads(png.text["tokens"])  # type: ignore[attr-defined]


def counts(*numbers: tuple[int, int]) -> list[tuple[str, int, int]]:
    return [(encoder, *pair) for encoder, pair in zip(ENCODERS, numbers, strict=False)]


LONG_T5 = len(LONG) + 2


@pytest.mark.parametrize(
    "model, short, long",
    [
        ("sd1", counts((5, 0)), counts((32, 14))),
        ("sdxl", counts((5, 0), (5, 0)), counts((32, 14), (32, 14))),
        ("sd3", counts((5, 0), (5, 0), (14, 0)), counts((32, 14), (32, 14), (LONG_T5, 0))),
        ("sd3_without_t5", counts((5, 0), (5, 0)), counts((32, 14), (32, 14))),
        ("flux", counts((5, 0), (14, 0)), counts((32, 14), (LONG_T5, 0))),
        ("chroma", counts((14, 0)), counts((LONG_T5, 0))),
        ("z-image", counts((12 + CHAT, 0)), counts((len(LONG) + CHAT, 0))),
        ("flux2-klein", counts((12 + NO_THINKING, 0)), counts((len(LONG) + NO_THINKING, 0))),
        ("qwen-image", counts((12 + DESCRIBED, 0)), counts((len(LONG) + DESCRIBED, 0))),
        ("krea2", counts((12 + PREFIX, 0)), counts((len(LONG) + PREFIX, 0))),
    ],
)
def test_tokens_are_counted_as_the_pipeline_cuts_them(
    served: Daemon, model: str, short: list[Any], long: list[Any]
) -> None:
    with served.client() as client:
        for prompt, negative, expected in (
            (SHORT, "", (short, [])),
            (LONG, SHORT, (long, short)),
            (SHORT, LONG, (short, long)),
        ):
            used, avoided, png = told(client, prompt, model=model, negative_prompt=negative, cfg_scale=4.0)
            assert (used, avoided) == expected
            for kind, counted in (("prompt", used), ("negative_prompt", avoided)):
                assert [tuple(one.values()) for one in png[kind]] == counted
        # Without guidance the negative prompt goes through no encoder.
        assert told(client, SHORT, model=model, negative_prompt=LONG, cfg_scale=0.0)[:2] == (short, [])


@pytest.mark.parametrize(
    "model, limit, added",
    [
        *[("sd3", 256, 2), ("flux", 512, 2), ("chroma", 512, 2)],
        *[("z-image", 512, CHAT), ("flux2-klein", 512, NO_THINKING)],
        *[("qwen-image", 546, DESCRIBED), ("krea2", 541, PREFIX)],
    ],
)
def test_an_encoder_takes_as_many_tokens_as_its_pipeline(served: Daemon, model: str, limit: int, added: int) -> None:
    with served.client() as client:
        fits, too_long = "x" * (limit - added), "x" * (limit - added + 9)
        assert told(client, fits, model=model)[0][-1][1:] == (limit, 0)
        assert told(client, too_long, model=model)[0][-1][1:] == (limit, 9)


@pytest.mark.parametrize("model", [name for name in NAMES if FAMILIES[name].prompt_template != "{}"])
def test_only_what_is_cut_has_no_effect(served: Daemon, model: str) -> None:
    family = FAMILIES[model]
    before = len(re.sub(MARK, "?", family.prompt_template.partition("{}")[0]))
    room = 512 + family.free_tokens - before
    wanted = {"model": model, "width": 64, "height": 64, "steps": 2, "format": "raw"}
    with served.client() as client:
        full, longer, other = (
            images(generate(client, prompt, **wanted))[0].data
            for prompt in ("x" * room + "abc", "x" * room + "cba", "x" * (room - 1) + "yabc")
        )
    assert full == longer != other


def test_weavectl_warns_of_cut_prompts_and_json_has_the_numbers(served: Daemon, tmp_path: Path) -> None:
    options = ("--model=sdxl", "--width=64", "--height=64", "--steps=1", "--negative-prompt", LONG, "--force")
    ended = weavectl(served, "generate", SHORT, *options, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    warning = "weavectl: warning: the negative prompt has 46 tokens; {} takes 32, so 14 were cut"
    assert ended.stderr.splitlines() == [warning.format(encoder) for encoder in ENCODERS[:2]]
    scripted = weavectl(served, "--json", "generate", SHORT, *options, folder=tmp_path)
    done = json.loads(scripted.stdout.splitlines()[-1])
    assert done["tokens"]["negative_prompt"] == [
        {"encoder": encoder, "used": 32, "cut": 14} for encoder in ENCODERS[:2]
    ]
