"""The texts of a PNG: how its image was generated, and what other tools read."""

import msgspec
from PIL import PngImagePlugin

import weave
from weave.protocol.bounds import MAX_SEED
from weave.protocol.client_messages import Tokens
from weave.protocol.infotext import INFOTEXT, infotext
from weave.protocol.parameters import Parameters, png_text


def metadata(
    parameters: Parameters, *, model: str, number: int, tokens: Tokens, digests: tuple[str, ...]
) -> PngImagePlugin.PngInfo:
    """For image `number` (from 0) of a job. `digests` are the SHA-256 of its input images' pixels."""
    seed = (parameters.seed + number) & MAX_SEED
    texts = {
        "Software": f"weave-compute {weave.__version__}",
        **png_text(parameters, model=model, seed=seed),
        "tokens": _json(tokens),
    }
    if digests:
        texts["inputs"] = _json(digests)
    before = number % parameters.batch
    together = min(parameters.batch, parameters.images - number + before)
    if together > 1:  # an image's pixels can depend on those generated with it
        texts["pass"] = _json({"seed": (seed - before) & MAX_SEED, "images": together})
    info = PngImagePlugin.PngInfo()
    for name, value in texts.items():
        info.add_itxt(name, value)
    # In Latin-1 if possible: some tools read nothing else.
    info.add_text(INFOTEXT, infotext(parameters, model=model, seed=seed, version=weave.__version__))
    return info


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
