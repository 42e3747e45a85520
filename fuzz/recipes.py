"""The target `recipes`: the texts of a PNG from anyone, which weavectl repeats."""

import io
from contextlib import suppress

from fuzz.reading import Reader
from weave.client.codec import InvalidRequest, request_frame
from weave.protocol.client_messages import Generate
from weave.protocol.inputs import InputImage
from weave.weavectl.png_text import UnreadablePng, texts_of
from weave.weavectl.recipe import SETTABLE, BadRecipe, Recipe, recipe_of

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OWN = {
    "Software": "weave-compute 1", "prompt": "x", "model": "m", "width": "64", "height": "64", "steps": "1",
    "cfg_scale": "1.0", "seed": "1", "scheduler": "ddim",
}  # fmt: skip
_LONGEST_ERROR = 1000


def recipes(data: bytes) -> None:
    """A clear error, or a request that can be sent and a digest for each image that was announced."""
    reader = Reader(data)
    kind = reader.byte() % 3
    if kind == 0:
        texts = _texts_of(_SIGNATURE + reader.rest())
    else:
        lines = reader.rest().decode(errors="replace")
        texts = {"parameters": lines} if kind == 1 else _OWN | dict(_pairs(lines))
    try:
        recipe = recipe_of(texts, {})
    except BadRecipe as error:
        assert 0 < len(str(error)) < _LONGEST_ERROR
        return
    _check(recipe)


def _texts_of(png: bytes) -> dict[str, str]:
    try:
        return texts_of(io.BytesIO(png))
    except UnreadablePng as error:
        assert 0 < len(str(error)) < _LONGEST_ERROR
        return {}


def _pairs(lines: str) -> list[tuple[str, str]]:
    """Each line is a text's name, a space and the text."""
    return [(name, text) for name, _, text in (line.partition(" ") for line in lines.split("\n")) if name]


def _check(recipe: Recipe) -> None:
    assert recipe.values.keys() <= set(SETTABLE) and 0 <= recipe.only < recipe.images
    assert len(recipe.control) == sum(one.field == "control" for one in recipe.inputs)
    for one in recipe.inputs:
        assert (one.size is None and one.digest is None) or (
            isinstance(one.size, InputImage) and one.digest is not None and len(one.digest) == 64
        )
    with suppress(InvalidRequest):
        assert request_frame(1, Generate(**recipe.values))
