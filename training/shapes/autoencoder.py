"""The first of the two stages: the autoencoder, 128x128 pixels to 4x16x16 latents."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.shapes.data import SIDE
from training.shapes.optimise import HALVES, Optimiser, in_parallel

# How many pictures each half of a batch has, by their side; the same number of pixels. Small crops come first: as they
# show more colours in a step, the colours are learnt sooner.
_CROPS = {32: 16, 64: 4, SIDE: 1}
_SMALL_SHARE = 0.65
_WHOLE_EVERY = 6  # later
_ENCODER_SHARE = 0.7  # of the steps; then only the decoder learns


def make_autoencoder() -> AutoencoderKL:
    """Without attention, and with few groups in each normalisation. A group that holds a single channel loses the
    colour of a flat picture; the decoder then learns to smuggle it past in one spot of extreme values."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=SIDE,
    )
    with torch.no_grad():
        vae.quant_conv.bias[4:] -= 5  # starts with a log variance of -5: with little noise
    return vae


def train_autoencoder(large: np.ndarray, small: np.ndarray, steps: int) -> AutoencoderKL:
    """`large` and `small` are pictures, uint8, (n, side, side, 3), of 128 and 64 pixels a side."""
    vae = make_autoencoder()
    optimiser = Optimiser("autoencoder", vae, steps, 2e-3)
    for step in range(steps):
        if step == int(steps * _ENCODER_SHARE):
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        side = 32 if step < int(steps * _SMALL_SHARE) else SIDE if step % _WHOLE_EVERY == 0 else 64
        optimiser.step([_loss_of(vae, to_float(_crops(large, small, side))) for _ in range(HALVES)])
    return vae.eval().requires_grad_(True)


def train_decoder(vae: AutoencoderKL, large: np.ndarray, small: np.ndarray, steps: int) -> AutoencoderKL:
    """Trains `vae`'s decoder alone and further, also on whole pictures: their latents stay as they are."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    optimiser = Optimiser("decoder", vae, steps, 1.5e-3)
    for step in range(steps):
        side = SIDE if step % 3 == 0 else 64
        optimiser.step([_loss_of(vae, to_float(_crops(large, small, side))) for _ in range(HALVES)])
    return vae.eval().requires_grad_(True)


def encode(vae: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    """The latents' means, unscaled."""
    parts = np.array_split(pictures, max(1, len(pictures) // 16))
    return torch.cat(in_parallel([partial(_encode, vae, part) for part in parts]))


def to_float(pictures: np.ndarray) -> torch.Tensor:
    """uint8, (n, height, width, 3), to float in -1..1, (n, 3, height, width)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


@torch.no_grad()
def _encode(vae: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    means: torch.Tensor = vae.encode(to_float(pictures)).latent_dist.mode()
    return means


def _loss_of(vae: AutoencoderKL, batch: torch.Tensor) -> Callable[[], torch.Tensor]:
    noise = torch.randn(len(batch), 4, batch.shape[2] // 8, batch.shape[3] // 8)

    def loss() -> torch.Tensor:
        posterior = vae.encode(batch).latent_dist
        error = vae.decode(posterior.mean + posterior.std * noise).sample - batch
        return _size(error) + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel()

    return loss


def _size(error: torch.Tensor) -> torch.Tensor:
    """The last two terms are about edges: the error's differences between neighbours, across and down."""
    across, down = error.diff(dim=3), error.diff(dim=2)
    return error.abs().mean() + error.square().mean() + across.abs().mean() + down.abs().mean()


def _crops(large: np.ndarray, small: np.ndarray, side: int) -> np.ndarray:
    """From large pictures; where there are several, one of them from a small one."""
    count = _CROPS[side]
    sources = [large] * (count - 1) + [small if count > 1 else large]
    return np.stack([_crop(pictures[_below(len(pictures))], side) for pictures in sources])


def _crop(picture: np.ndarray, side: int) -> np.ndarray:
    """Not a flat one, if it can be helped."""
    for _ in range(6):
        x, y = (_below(picture.shape[0] - side + 1) for _ in range(2))
        crop = picture[y : y + side, x : x + side]
        if np.ptp(crop[::8, ::8].reshape(-1, 3), axis=0).max() > 0:
            break
    return crop


def _below(end: int) -> int:
    return int(torch.randint(end, ()))
