"""Trains the demo model from nothing: python -m training.shapes.train --output models/shapes

A latent diffusion model in miniature, of the classes of Stable Diffusion 1: first the autoencoder, then the UNet
together with the text encoder on the autoencoder's latents.
"""

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.shapes.data import _PHRASINGS, COLOURS, SHAPES, Scene, caption, draw, scenes

SEED = 20260901
PICTURES = 8192
VAE_STEPS, VAE_BATCH = 1200, 16
UNET_STEPS, UNET_BATCH = 3500, 32
TOKENS = 32
CAPTION_DROPOUT = 0.1  # what classifier-free guidance subtracts must be learnt too


def main() -> None:
    """Train, save, tell how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--unet-steps", type=int, default=UNET_STEPS)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    started = time.monotonic()

    rng = random.Random(SEED)
    shown = [rng.choice(scenes()[0]) for _ in range(options.pictures)]
    pictures = torch.from_numpy(np.stack([draw(scene, rng) for scene in shown])).permute(0, 3, 1, 2)
    vae = train_vae(pictures, options.vae_steps)
    latents = encode_all(vae, pictures)
    tokenizer = make_tokenizer(options.output.parent / "tokenizer-building")
    text_encoder = make_text_encoder(tokenizer)
    unet = train_unet(shown, latents, tokenizer, text_encoder, options.unet_steps, rng)

    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, make_scheduler(), None, None, requires_safety_checker=False
    )
    save(pipeline, options.output)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes")


def to_float(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 to float in -1..1."""
    return pictures.float() / 127.5 - 1


def train_vae(pictures: torch.Tensor, steps: int) -> AutoencoderKL:
    """pictures: uint8, (n, 3, 64, 64). The autoencoder makes (4, 16, 16) of each."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for step in range(steps):
        batch = to_float(pictures[torch.randint(len(pictures), (VAE_BATCH,))])
        posterior = vae.encode(batch).latent_dist
        output = vae.decode(posterior.sample()).sample
        loss = functional.l1_loss(output, batch) + functional.mse_loss(output, batch) + 1e-5 * posterior.kl().mean()
        optimise(loss, optimizer, schedule, vae)
        report("vae", step, steps, loss)
    return vae.eval()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """All latents, scaled to a standard deviation of 1; the factor goes into the autoencoder's config."""
    means = [vae.encode(to_float(part)).latent_dist.mode() for part in pictures.split(64)]
    latents = torch.cat(means)
    factor = 1 / float(latents.std())
    vae.register_to_config(scaling_factor=factor)
    return latents * factor


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A real CLIP tokenizer whose byte pairs were learnt from our captions; any other text falls into letters."""
    words = [p.format(colour=c, shape=s, background=c) for p in _PHRASINGS for c in COLOURS for s in SHAPES]
    building = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    building.normalizer = normalizers.Lowercase()
    building.pre_tokenizer = pre_tokenizers.Whitespace()
    building.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=400, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = json.loads(building.to_str())["model"]["merges"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=TOKENS)
    shutil.rmtree(folder)
    return tokenizer


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_scheduler() -> DDIMScheduler:
    """v-prediction down to a signal of nothing, or flat backgrounds would come out grey (arXiv:2305.08891)."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def train_unet(
    shown: list[Scene],
    latents: torch.Tensor,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    steps: int,
    rng: random.Random,
) -> UNet2DConditionModel:
    """latents: float, (n, 4, 16, 16). Trains the text encoder along; both end up as their moving averages."""
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    scheduler = make_scheduler()
    trained = torch.nn.ModuleList([unet, text_encoder])
    average = EMAModel(trained.parameters(), decay=0.998, use_ema_warmup=True, power=0.8)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        picked = torch.randint(len(latents), (UNET_BATCH,))
        captions = ["" if rng.random() < CAPTION_DROPOUT else caption(shown[i], rng) for i in picked.tolist()]
        tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        clean, noise = latents[picked], torch.randn(UNET_BATCH, 4, 16, 16)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (UNET_BATCH,))
        noisy = scheduler.add_noise(clean, noise, timesteps)
        output = unet(noisy, timesteps, text_encoder(tokens.input_ids)[0]).sample
        loss = functional.mse_loss(output, scheduler.get_velocity(clean, noise, timesteps))
        optimise(loss, optimizer, schedule, trained)
        average.step(trained.parameters())
        report("unet", step, steps, loss)
    average.copy_to(trained.parameters())
    return unet.eval()


def optimise(loss: torch.Tensor, optimizer: Any, schedule: Any, module: torch.nn.Module) -> None:
    """One step of gradient descent."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def report(name: str, step: int, steps: int, loss: torch.Tensor) -> None:
    """A line every hundred steps."""
    if step % 100 == 99:
        print(f"{name} {step + 1}/{steps} loss {loss.item():.4f}", flush=True)


def save(pipeline: StableDiffusionPipeline, output: Path) -> None:
    """Diffusers layout, half precision, safetensors; put in place of what was there only when complete."""
    building = output.with_name(output.name + ".new")
    pipeline.to(dtype=torch.float16).save_pretrained(str(building), safe_serialization=True)
    if output.exists():
        shutil.rmtree(output)
    building.rename(output)


if __name__ == "__main__":
    main()
