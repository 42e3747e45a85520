"""The tokenizer, and the text encoder, which learns to read on its own: from captions, without a picture.

The UNet then need not learn language, which takes it long. The last tokens of a caption are padding, and padding sees
all that comes before it. Each of the last six learns to answer one question: what is the background, and what is in the
middle, on the left, on the right, at the top and at the bottom?
"""

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.shapes.data import COLOURS, RELATIONS, SHAPES, Scene, Thing, Training
from training.shapes.optimise import HALVES, Optimiser

TOKENS = 32
WIDTH = 128
CAPTION_DROPOUT = 0.1  # what classifier-free guidance subtracts must be learnt too
_BATCH = 16  # of each half
PLACES = {(0, 0): 1, (-1, 0): 2, (1, 0): 3, (0, -1): 4, (0, 1): 5}  # 0 is the background
_NO_COLOUR, _NO_SHAPE = len(COLOURS), len(SHAPES)


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that has a token for each word of our captions; any other text falls into pieces. `folder` is
    made and deleted."""
    rng = random.Random(0)
    chooser = Training(rng)
    merges = _merges({word for _ in range(1000) for word in re.findall("[a-z]+", chooser.scene().caption(rng))})
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=TOKENS)
    shutil.rmtree(folder)
    return tokenizer


def _merges(words: set[str]) -> list[tuple[str, str]]:
    """Byte pairs, the most frequent first, until each word is one. Of equals the first in the alphabet: the library's
    trainer takes any."""
    spelt = [[*word[:-1], word[-1] + "</w>"] for word in sorted(words)]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for pieces in spelt for pair in pairwise(pieces)):
        first, second = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((first, second))
        for pieces in spelt:
            for i in range(len(pieces) - 2, -1, -1):
                if pieces[i : i + 2] == [first, second]:
                    pieces[i : i + 2] = [first + second]
    return merges


def tokens_of(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """(n, TOKENS)."""
    padded = tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    tokens: torch.Tensor = padded.input_ids
    return tokens


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of four layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_text_encoder(tokenizer: CLIPTokenizer, steps: int, rng: random.Random) -> CLIPTextModel:
    """What answers the questions is thrown away: the UNet learns to read the encoder's states."""
    encoder = make_text_encoder(tokenizer)
    answers = torch.nn.Linear(WIDTH, _NO_COLOUR + 1 + _NO_SHAPE + 1)
    optimiser = Optimiser("text encoder", torch.nn.ModuleList([encoder, answers]), steps, 1e-3)
    chooser = Training(rng)

    def loss_of(scenes: list[Scene | None]) -> Callable[[], torch.Tensor]:
        tokens = tokens_of(tokenizer, [scene.caption(rng) if scene else "" for scene in scenes])
        colours, shapes = torch.tensor([_contents(scene) for scene in scenes]).unbind(2)

        def loss() -> torch.Tensor:
            states = encoder(tokens)[0][:, -colours.shape[1] :]
            colour, shape = answers(states).transpose(1, 2).split([_NO_COLOUR + 1, _NO_SHAPE + 1], dim=1)
            return functional.cross_entropy(colour, colours) + functional.cross_entropy(shape, shapes)

        return loss

    def scene() -> Scene | None:
        return None if rng.random() < CAPTION_DROPOUT else chooser.scene()

    for _ in range(steps):
        optimiser.step([loss_of([scene() for _ in range(_BATCH)]) for _ in range(HALVES)])
    return encoder.eval().requires_grad_(False)


def _contents(scene: Scene | None) -> list[tuple[int, int]]:
    """Colour and shape of the background and of each place."""
    contents = [(_NO_COLOUR, _NO_SHAPE)] * (1 + len(PLACES))
    if scene:
        contents[0] = list(COLOURS).index(scene.background), _NO_SHAPE
        dx, dy = RELATIONS[scene.relation] if scene.relation else (0, 0)
        contents[PLACES[dx, dy]] = _number(scene.first)
        if scene.second:
            contents[PLACES[-dx, -dy]] = _number(scene.second)
    return contents


def _number(thing: Thing) -> tuple[int, int]:
    return list(COLOURS).index(thing.colour), SHAPES.index(thing.shape)
