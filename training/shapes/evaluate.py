"""How often the demo model draws what it was asked for: python -m training.shapes.evaluate models/shapes"""

import sys

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from tests.support.shapes_checker import look
from training.shapes.data import scenes

SEEDS = (1, 2, 3)


def main() -> None:
    """One table: a row a seed, a column for shape, colour, background and all three."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        sys.argv[1], torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    held_out = scenes()[1]
    grid = []
    for seed in SEEDS:
        right = []
        for scene in held_out:
            generator = torch.Generator().manual_seed(seed)
            picture = pipeline(scene.prompt(), num_inference_steps=20, guidance_scale=3.0, generator=generator).images[
                0
            ]
            grid.append(np.asarray(picture))
            seen = look(np.asarray(picture))
            right.append([seen.shape == scene.shape, seen.colour == scene.colour, seen.background == scene.background])
            if not all(right[-1]):
                print("wrong:", scene, seen)
        table = np.array(right)
        shape, colour, background = table.mean(0)
        print(f"seed {seed}: shape {shape:.0%} colour {colour:.0%} background {background:.0%}", end=" ")
        print(f"all three {table.all(1).mean():.0%} of {len(held_out)}")
    if len(sys.argv) > 2:
        rows = [np.concatenate(grid[i : i + 12], axis=1) for i in range(0, 60, 12)]
        Image.fromarray(np.concatenate(rows)).save(sys.argv[2])


if __name__ == "__main__":
    main()
