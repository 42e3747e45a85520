"""The tokens that each text encoder used and cut: in `done`, in the PNG, and by weavectl."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from tests.integration.test_weavectl import weavectl
from tests.support.daemon import Daemon
from tests.support.generation import generate, images
from tests.support.reference import make_small_model
from weave.client import Client
from weave.protocol.client_messages import Done

NAMES = ("sd1", "sdxl", "sd3", "flux")
# These CLIP tokenizers have one token per word and take 32 with start and end. T5 has one per character,
# one for a leading space and one for the end.
SHORT, LONG = "a red circle", "red circle " * 20 + "on a blue background"
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


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
    answers = generate(client, prompt, width=64, height=64, steps=1, **wanted)
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
        assert told(client, SHORT, model=model, negative_prompt=LONG, cfg_scale=1.0)[:2] == (short, [])


@pytest.mark.parametrize("model, limit", [("sd3", 256), ("flux", 512)])
def test_a_t5_encoder_takes_as_many_tokens_as_its_pipeline(served: Daemon, model: str, limit: int) -> None:
    with served.client() as client:
        fits, too_long = "x" * (limit - 2), "x" * (limit + 7)
        assert told(client, fits, model=model)[0][-1][1:] == (limit, 0)
        assert told(client, too_long, model=model)[0][-1][1:] == (limit, 9)


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
