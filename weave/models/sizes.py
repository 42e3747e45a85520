"""The sizes that the components of a model share: what one gives must be what the other takes."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from weave.models.configs import shown
from weave.models.files import ModelFilesRefused

# Each component's config by its folder, completed with the class's own defaults.
Configs = Mapping[str, Mapping[str, Any]]
Sizes = Callable[[Configs], Iterator["Expected"]]

# Each block but the first halves the sides, and widths and heights are multiples of 8 latents.
_MOST_VAE_BLOCKS = 4


class Expected(NamedTuple):
    """`part`'s config must have `value` for `key`; `source` says where that comes from."""

    part: str
    key: str
    value: Any
    source: str


def vae(configs: Configs) -> Iterator[Expected]:
    """Of an AutoencoderKL, by itself."""
    yield Expected("vae", "in_channels", 3, "red, green, blue")
    yield Expected("vae", "out_channels", 3, "red, green, blue")
    blocks = configs["vae"]["block_out_channels"]
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= _MOST_VAE_BLOCKS:
        told = f"block_out_channels is {shown(blocks)}, expected 1 to {_MOST_VAE_BLOCKS} blocks"
        raise ModelFilesRefused(f"vae/config.json: {told}")


def unet(configs: Configs) -> Iterator[Expected]:
    """Of a UNet2DConditionModel and its AutoencoderKL."""
    yield from vae(configs)
    latents = configs["vae"]["latent_channels"]
    yield Expected("unet", "in_channels", latents, "the VAE's latent_channels")
    yield Expected("unet", "out_channels", latents, "the VAE's latent_channels")
    for key in ("encoder_hid_dim", "encoder_hid_dim_type", "class_embed_type", "num_class_embeds"):
        yield Expected("unet", key, None, "this family has none")


def total(*sizes: Any) -> int | None:
    """The sum; None where one of them is not a size."""
    return sum(sizes) if all(isinstance(size, int) for size in sizes) else None


def product(first: Any, second: Any) -> int | None:
    """None where one of them is not a size."""
    return first * second if isinstance(first, int) and isinstance(second, int) else None
