"""The last stage: the UNet, on the autoencoder's latents."""

import random
from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from training.shapes.attention import HEADS, guided
from training.shapes.data import Scene
from training.shapes.optimise import HALVES, Optimiser
from training.shapes.text import CAPTION_DROPOUT, WIDTH, tokens_of

_BATCH = 8  # of each half, of large latents; of small ones twice as many
_SMALL_SHARE = 0.12  # of the steps, with small latents
# More timesteps are near the end, where the places of the shapes are decided: all else is learnt sooner.
_SHIFT = 4.0
_ATTENTION_SHARE = 0.1  # of its loss, in the sum
_LARGEST_RATIO = 5.0  # of signal to noise, that counts fully


def make_unet() -> UNet2DConditionModel:
    """Attention only where the latents are 8x8 or 4x4."""
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=HEADS,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """v-prediction down to no signal at all, or flat backgrounds would come out grey (arXiv:2305.08891)."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def train_unet(
    unet: UNet2DConditionModel,
    scenes: list[Scene],
    latents: tuple[torch.Tensor, torch.Tensor],
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    steps: int,
    rate: float,
    rng: random.Random,
) -> UNet2DConditionModel:
    """`latents` are scaled, first of 16x16, then of 8x8; each shows the scene of the same number. Returns `unet`, with
    the weights' moving average."""
    large, small = latents
    scheduler = make_scheduler()
    average = EMAModel(unet.parameters(), decay=0.998, use_ema_warmup=True, power=0.8)
    optimiser = Optimiser("unet", unet, steps, rate)

    def loss_of(pool: torch.Tensor, size: int) -> Callable[[], torch.Tensor]:
        picked = torch.randint(len(pool), (size,))
        captions = ["" if rng.random() < CAPTION_DROPOUT else scenes[i].caption(rng) for i in picked.tolist()]
        tokens = tokens_of(tokenizer, captions)
        clean = pool[picked]
        noise = torch.randn(clean.shape)
        share = (torch.arange(size) + torch.rand(size)) / size
        timesteps = (1000 * _SHIFT * share / (1 + (_SHIFT - 1) * share)).long().clamp(max=999)
        noisy, velocity = scheduler.add_noise(clean, noise, timesteps), scheduler.get_velocity(clean, noise, timesteps)
        signal = scheduler.alphas_cumprod[timesteps]
        # With little noise, what is left to learn does not show (arXiv:2303.09556).
        weights = (_LARGEST_RATIO * (1 - signal) / signal).clamp(max=1)

        def loss() -> torch.Tensor:
            with torch.no_grad():
                states = text_encoder(tokens)[0]
            looks: list[torch.Tensor] = []
            predicted = unet(noisy, timesteps, states, cross_attention_kwargs={"losses": looks}).sample
            error = functional.mse_loss(predicted, velocity, reduction="none").mean((1, 2, 3))
            return (error * weights).mean() + _ATTENTION_SHARE * torch.stack(looks).mean()

        return loss

    with guided(unet):
        for _ in range(steps):
            if rng.random() < _SMALL_SHARE:
                optimiser.step([loss_of(small, 2 * _BATCH) for _ in range(HALVES)])
            else:
                optimiser.step([loss_of(large, _BATCH) for _ in range(HALVES)])
            average.step(unet.parameters())
    average.copy_to(unet.parameters())
    return unet.eval()
