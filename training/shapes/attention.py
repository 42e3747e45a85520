"""What the UNet's cross-attention knows.

The last tokens of a caption say what is in each place (text.py), and where a pixel is, a convolution can tell only
from the edges of the picture. Left alone, the UNet takes very long to find out either, and draws two shapes anywhere.
Here a loss gives each of these tokens a head of its own, and each pixel its coordinates.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from training.shapes.text import PLACES

HEADS = 8
_TOKENS = len(PLACES) + 1  # and the background
_REACH = 2.0  # of the coordinates, up and down from 0: beside them, the other channels are about 1


class _Guided:
    """Attention as in diffusers. To text, it also appends to `losses` how far its heads look elsewhere, and how
    little its pixels know where they are."""

    def __call__(
        self,
        attention: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        losses: list[torch.Tensor] | None = None,
        **_: Any,
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attention.head_to_batch_dim(attention.to_q(hidden_states))
        key = attention.head_to_batch_dim(attention.to_k(context))
        value = attention.head_to_batch_dim(attention.to_v(context))
        shares = attention.get_attention_scores(query, key)
        if losses is not None and encoder_hidden_states is not None:
            losses.append(_elsewhere(shares.unflatten(0, (-1, HEADS))) + _lost(hidden_states))
        mixed = attention.batch_to_head_dim(torch.bmm(shares, value))
        output: torch.Tensor = attention.to_out[1](attention.to_out[0](mixed))
        return output


@contextlib.contextmanager
def guided(unet: UNet2DConditionModel) -> Iterator[None]:
    """In this context `unet` takes cross_attention_kwargs={"losses": a list}, to which each layer appends a loss."""
    own = unet.attn_processors
    unet.set_attn_processor({name: _Guided() for name in own})
    yield
    unet.set_attn_processor(own)


def _elsewhere(shares: torch.Tensor) -> torch.Tensor:
    """`shares` are (batch, heads, pixels, tokens). Of the first heads each is to look at one of the last tokens."""
    found = shares[:, :_TOKENS, :, -_TOKENS:].diagonal(dim1=1, dim2=3)
    return -(found + 1e-6).log().mean()


def _lost(pixels: torch.Tensor) -> torch.Tensor:
    """`pixels` are (batch, height x width, channels). The first two channels are to be the pixel's coordinates."""
    along = torch.linspace(-_REACH, _REACH, int(pixels.shape[1] ** 0.5))
    return (pixels[:, :, :2] - torch.cartesian_prod(along, along)).square().mean()
