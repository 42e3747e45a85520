"""Generates docs/demo.png with a running daemon: python -m training.shapes.sheet docs/demo.png"""

import io
import sys

from PIL import Image

from weave.client import Client

PROMPTS = (
    "a red circle on a blue background",
    "a yellow star on a purple background",
    "a green triangle on an orange background",
    "a red circle left of a green star",
    "a white square right of an orange circle on a black background",
    "a blue star above a purple square on a yellow background",
)
SEED = 1
_COLUMNS, _GAP = 3, 8


def main() -> None:
    """Two rows of three."""
    images = []
    with Client() as client:
        for prompt in PROMPTS:
            answers = client.generate(prompt, model="shapes", seed=SEED)
            images += [Image.open(io.BytesIO(answer.data)) for answer in answers if answer.data]
    width, height = (side + _GAP for side in images[0].size)
    rows = len(images) // _COLUMNS
    sheet = Image.new("RGB", (_COLUMNS * width - _GAP, rows * height - _GAP), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % _COLUMNS * width, number // _COLUMNS * height))
    sheet.save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
