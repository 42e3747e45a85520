"""weavectl repeat: generate an image again from the texts in its PNG."""

import argparse
import io
from typing import Any, NamedTuple

from msgspec import structs

from weave.client import Client, Control
from weave.client.pixels import Upload
from weave.weavectl.connect import connect
from weave.weavectl.generate import InputFile, Results, check_standard_input, generate_into, opened, pixels_in
from weave.weavectl.output import Output, UsageError
from weave.weavectl.png_text import UnreadablePng, texts_of
from weave.weavectl.recipe import SETTABLE, BadRecipe, Input, Recipe, recipe_of


class _Given(NamedTuple):
    """A file of --image, and its bytes."""

    file: InputFile
    data: bytes


def repeat(options: argparse.Namespace, output: Output) -> int:
    """Generate an image again: the same pixels, or with settings changed."""
    original = InputFile("FILE", options.file)
    check_standard_input([original, *options.image])
    try:
        recipe = recipe_of(texts_of(io.BytesIO(original.read())), _settings(options))
    except (UnreadablePng, BadRecipe) as error:
        raise UsageError(f"{options.file}: {error}") from None
    parameters = recipe.values | _images(recipe, [_Given(file, file.read()) for file in options.image])
    if recipe.ignored:
        output.warning(f"not used: {', '.join(name[:80] for name in recipe.ignored)}")
    with opened(options, 1, output, previews=False) as files, connect(options) as client:
        if recipe.schedulers:
            parameters["scheduler"] = _scheduler(client, recipe)
        prompt = parameters.pop("prompt")
        results = Results(files, output, recipe.images, options.output == "-", recipe.only)
        generate_into(client, prompt, parameters | {"images": recipe.images}, results)
    return 0


def _settings(options: argparse.Namespace) -> dict[str, str]:
    settings = dict(options.set)
    if options.model is not None:
        settings["model"] = options.model
    for name in settings:
        if name not in SETTABLE:
            raise UsageError(f"--set: {name[:80]!r} cannot be set; these can: {', '.join(SETTABLE)}")
    return settings


def _scheduler(client: Client, recipe: Recipe) -> str:
    """The scheduler that the text's sampler means for this model."""
    offered = client.list_models()
    model = recipe.values.get("model", offered.loaded or offered.default)
    for offer in offered.models:
        if offer.id == model:
            for name in recipe.schedulers:
                if name in offer.schedulers:
                    return name
    return recipe.schedulers[0]  # the daemon's error lists what it has


def _images(recipe: Recipe, given: list[_Given]) -> dict[str, Any]:
    """The parameters with images. Raises UsageError unless the files are those of the original."""
    if recipe.inputs and not given:
        shown = ", ".join(map(_shown, recipe.inputs if recipe.inputs[0].digest else recipe.inputs[:1]))
        raise UsageError(f"the original was generated from images; give them with --image FILE: {shown}")
    if any(wanted.digest is None for wanted in recipe.inputs):
        return _any_images(recipe, given)
    unused, found = list(given), []
    for wanted in recipe.inputs:
        file, upload = _matching(wanted, given)
        found.append(upload)
        unused = [other for other in unused if other is not file]
    if unused:
        raise UsageError(f"{unused[0].file.option}: the original was not generated from {unused[0].file.path}")
    return _parameters(recipe, found)


def _matching(wanted: Input, given: list[_Given]) -> tuple[_Given, Upload]:
    assert wanted.size is not None
    digests = []
    for file in given:
        upload = pixels_in(file.file, wanted.field, file.data).converted(wanted.size.channels)
        if (digest := upload.digest()) == wanted.digest:
            return file, upload
        digests.append(f"{file.file.path} has {upload.size.width}x{upload.size.height}, {digest}")
    raise UsageError(f"--image: no file has the pixels of the original's {_shown(wanted)}; {'; '.join(digests)}")


def _any_images(recipe: Recipe, given: list[_Given]) -> dict[str, Any]:
    """The text of another program does not say which images there were, or whether one was a mask."""
    if len(given) > len(recipe.inputs):
        raise UsageError("--image: the text of this image allows an image and a mask")
    pairs = zip(recipe.inputs, given, strict=False)
    found = [pixels_in(file.file, wanted.field, file.data) for wanted, file in pairs]
    return _parameters(recipe._replace(inputs=recipe.inputs[: len(found)]), found)


def _parameters(recipe: Recipe, found: list[Upload]) -> dict[str, Any]:
    by_field: dict[str, list[Upload]] = {}
    for wanted, upload in zip(recipe.inputs, found, strict=True):
        by_field.setdefault(wanted.field, []).append(upload)
    controls = zip(recipe.control, by_field.pop("control", []), strict=True)
    parameters: dict[str, Any] = {
        "control": [Control(**structs.asdict(control) | {"image": image}) for control, image in controls],
        "references": by_field.pop("references", []),
    }
    return parameters | {field: uploads[0] for field, uploads in by_field.items()}


def _shown(wanted: Input) -> str:
    if wanted.size is None:
        return wanted.field
    return f"{wanted.field} ({wanted.size.width}x{wanted.size.height}, sha256 {wanted.digest})"
