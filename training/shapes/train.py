"""Trains the demo model from nothing: python -m training.shapes.train --output models/shapes

A latent diffusion model in miniature, of the classes of Stable Diffusion 1, in stages: the autoencoder, more of its
decoder, the text encoder, the UNet, the UNet again with a lower rate, and once more on what it finds hard. Each stage
starts from the same seed, so one machine gives the same weights each time.
"""

import argparse
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from training.shapes.autoencoder import encode, make_autoencoder, train_autoencoder, train_decoder
from training.shapes.data import SIDE, Scene, Training, draw
from training.shapes.denoiser import make_scheduler, make_unet, train_unet
from training.shapes.text import make_text_encoder, make_tokenizer, train_text_encoder

SEED = 20260901
PICTURES = 8192
AUTOENCODER_STEPS = 2200
DECODER_STEPS = 1500
TEXT_STEPS = 700
UNET_STEPS = 3500
MORE_UNET_STEPS = 4000
LAST_UNET_STEPS = 1500


def main() -> None:
    """Train, save, report how long it took."""
    options = _options()
    torch.set_num_threads(1)  # in an operation; see optimise.py
    started = time.monotonic()
    stages = Stages(options.checkpoints)
    _, large, small = drawings(options.pictures, varied=True)
    vae = stages.run("vae", make_autoencoder, lambda _: train_autoencoder(large, small, options.autoencoder_steps))
    scenes, large, small = drawings(options.pictures, varied=False)
    large_latents, small_latents = encode(vae, large), encode(vae, small)
    factor = 1 / float(large_latents.std())
    vae = stages.run("decoder", make_autoencoder, lambda _: train_decoder(vae, large, small, options.decoder_steps))
    vae.register_to_config(scaling_factor=factor)

    tokenizer = make_tokenizer(options.output.with_name("tokenizer-building"))
    text_encoder = stages.run(
        "text_encoder",
        lambda: make_text_encoder(tokenizer),
        lambda rng: train_text_encoder(tokenizer, options.text_steps, rng),
    )
    latents = (large_latents * factor, small_latents * factor)
    unet = stages.run(
        "unet",
        make_unet,
        lambda rng: train_unet(make_unet(), scenes, latents, tokenizer, text_encoder, options.unet_steps, 1e-3, rng),
    )
    unet = stages.run(
        "unet_again",
        make_unet,
        lambda rng: train_unet(unet, scenes, latents, tokenizer, text_encoder, options.more_unet_steps, 7e-4, rng),
    )

    scenes, large, small = drawings(options.pictures, varied=False, hard=True)
    latents = (encode(vae, large) * factor, encode(vae, small) * factor)
    unet = stages.run(
        "unet_last",
        make_unet,
        lambda rng: train_unet(unet, scenes, latents, tokenizer, text_encoder, options.last_unet_steps, 3e-4, rng),
    )

    # Not the one from above: it has kept how it last padded.
    tokenizer = make_tokenizer(options.output.with_name("tokenizer-building"))
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, make_scheduler(), None, None, requires_safety_checker=False
    )
    save(pipeline, options.output)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes")


class Stages:
    """Runs stages. With a folder, keeps the weights of those that are done, and takes them from there the next time."""

    def __init__(self, folder: Path | None):
        self._folder = folder

    def run(self, name: str, make: Callable[[], Any], train: Callable[[random.Random], Any]) -> Any:
        """The trained module. `train` gets its own random generator; torch's starts from the same seed."""
        kept = self._folder / f"{name}.pt" if self._folder else None
        if kept and kept.exists():
            module = make()
            module.load_state_dict(torch.load(kept, weights_only=True))
            return module.eval()
        torch.manual_seed(SEED)
        module = train(random.Random(SEED))
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(module.state_dict(), kept)
        return module


def drawings(count: int, *, varied: bool, hard: bool = False) -> tuple[list[Scene], np.ndarray, np.ndarray]:
    """`count` scenes; a large picture of each, and a small one of the first half. `varied` is as for draw(), `hard` as
    for Training."""
    rng = random.Random(SEED)
    chooser = Training(rng, hard=hard)
    scenes = [chooser.scene() for _ in range(count)]
    large = np.stack([draw(scene, rng, varied=varied) for scene in scenes])
    small = np.stack([draw(scene, rng, SIDE // 2, varied=varied) for scene in scenes[: count // 2]])
    return scenes, large, small


def save(pipeline: StableDiffusionPipeline, output: Path) -> None:
    """Diffusers layout, half precision, safetensors; put in place of what was there only when complete."""
    building = output.with_name(output.name + ".new")
    pipeline.to(dtype=torch.float16).save_pretrained(str(building), safe_serialization=True)
    if output.exists():
        shutil.rmtree(output)
    building.rename(output)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--checkpoints", type=Path, help="a folder that keeps each stage's weights, to go on from there"
    )
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--autoencoder-steps", type=int, default=AUTOENCODER_STEPS)
    parser.add_argument("--decoder-steps", type=int, default=DECODER_STEPS)
    parser.add_argument("--text-steps", type=int, default=TEXT_STEPS)
    parser.add_argument("--unet-steps", type=int, default=UNET_STEPS)
    parser.add_argument("--more-unet-steps", type=int, default=MORE_UNET_STEPS)
    parser.add_argument("--last-unet-steps", type=int, default=LAST_UNET_STEPS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
