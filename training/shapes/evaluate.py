"""How good the demo model is: python -m training.shapes.evaluate models/shapes [--sheet FILE]

First the autoencoder, on a thousand pictures of scenes for training that it has not seen; then the share of held-out
prompts whose picture shows just what was asked for.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

from tests.support.shapes_checker import look
from training.shapes.autoencoder import to_float
from training.shapes.data import SIDE, Scene, Training, draw, held_out_pairs, held_out_singles

SEEDS = (1, 2, 3)
STEPS, GUIDANCE = 20, 2.0
_BATCH = 10
_FLAT_FROM_EDGE = 4  # pixels


def main() -> None:
    """Three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--pictures", type=int, default=1000, help="for the autoencoder")
    parser.add_argument("--prompts", type=int, default=100, help="of each kind")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--sizes", type=int, nargs="+", default=(SIDE, SIDE // 2), help="of the images")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--sheet", type=Path, help="where the images go, all in one")
    options = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(
        str(options.model), torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    if options.pictures:
        print(reconstruction(pipeline.vae, options.pictures))
    made: list[np.ndarray] = []
    for size in options.sizes:
        for kind, scenes in (("one shape", held_out_singles()), ("two shapes", held_out_pairs())):
            for seed in options.seeds:
                asked = scenes[: options.prompts]
                pictures = generate(pipeline, asked, seed, size, options.guidance)
                made += pictures
                print(f"{size}x{size}, {kind}, seed {seed}: {score(asked, pictures):.0%} of {len(asked)}", flush=True)
    if options.sheet:
        sheet(made).save(options.sheet)


@torch.no_grad()
def reconstruction(vae: AutoencoderKL, count: int) -> str:
    """The autoencoder's errors in units of 1/255; flat pixels are those far from any edge, where a spot would show."""
    rng = random.Random(7)
    chooser = Training(rng)
    errors, flat = [], []
    for _ in range(count):
        picture = draw(chooser.scene(), rng)
        output = vae.decode(vae.encode(to_float(picture[None])).latent_dist.mode()).sample
        again = ((output[0].permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255)
        errors.append(np.abs(again - picture).max(axis=2))
        flat.append(_flat(picture))
    error, where = np.stack(errors), np.stack(flat)
    worst = error.reshape(count, -1).max(1)
    worst_flat = np.where(where, error, 0).reshape(count, -1).max(1)
    return (
        f"autoencoder, {count} pictures: mean error {error.mean():.2f}, in flat parts {error[where].mean():.2f}\n"
        f"worst pixel: median {np.median(worst):.0f}, at most {worst.max():.0f}; "
        f"in flat parts: median {np.median(worst_flat):.0f}, at most {worst_flat.max():.0f}"
    )


def generate(pipeline: Any, scenes: list[Scene], seed: int, size: int, guidance: float) -> list[np.ndarray]:
    """An image for each scene, all from the same seed."""
    wanted = {"num_inference_steps": STEPS, "guidance_scale": guidance, "width": size, "height": size}
    made: list[np.ndarray] = []
    for start in range(0, len(scenes), _BATCH):
        prompts = [scene.prompt() for scene in scenes[start : start + _BATCH]]
        generators = [torch.Generator().manual_seed(seed) for _ in prompts]
        made += map(np.asarray, pipeline(prompts, generator=generators, **wanted).images)
    return made


def score(scenes: list[Scene], pictures: list[np.ndarray]) -> float:
    """The share that is right; prints the others."""
    wrong = [(scene, seen) for scene, seen in zip(scenes, map(look, pictures), strict=True) if not seen.shows(*scene)]
    for scene, seen in wrong:
        print(f"wrong: {scene.prompt()}: {seen}")
    return 1 - len(wrong) / len(scenes)


def sheet(pictures: list[np.ndarray]) -> Image.Image:
    """Rows of twenty."""
    padded = [np.pad(p, ((0, SIDE - p.shape[0]), (0, SIDE - p.shape[1]), (0, 0))) for p in pictures]
    padded += [np.zeros_like(padded[0])] * (-len(padded) % 20)
    return Image.fromarray(np.concatenate([np.concatenate(padded[i : i + 20], 1) for i in range(0, len(padded), 20)]))


def _flat(picture: np.ndarray) -> np.ndarray:
    """Where all pixels within _FLAT_FROM_EDGE, up, down and sideways, are the same."""
    values = picture.astype(int).sum(axis=2)
    side = 2 * _FLAT_FROM_EDGE + 1
    padded = np.pad(values, _FLAT_FROM_EDGE, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    flat: np.ndarray = np.ptp(windows, axis=(2, 3)) == 0
    return flat


if __name__ == "__main__":
    main()
