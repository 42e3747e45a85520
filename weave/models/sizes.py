"""The sizes that a model's components share: one component's output must fit another's input."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from weave.models.configs import shown

# Each component's config by its folder, with the class's defaults for missing keys. With the pipeline's SETTINGS.
Configs = Mapping[str, Mapping[str, Any]]
SETTINGS = "model_index.json"
# Yields what must hold, and as text what is wrong beyond that.
Sizes = Callable[[Configs], Iterator["Expected | str"]]

# Each block but the first halves width and height, and both are multiples of 8 pixels (= 2**3).
_MAX_VAE_BLOCKS = 4


class Expected(NamedTuple):
    """The config of `part` must have `value` for `key`; `source` says where the value comes from."""

    part: str
    key: str
    value: Any
    source: str


def vae(configs: Configs) -> Iterator[Expected | str]:
    """The sizes of an AutoencoderKL."""
    yield Expected("vae", "in_channels", 3, "red, green, blue")
    yield Expected("vae", "out_channels", 3, "red, green, blue")
    blocks = configs["vae"]["block_out_channels"]
    if not 1 <= len(blocks) <= _MAX_VAE_BLOCKS:
        yield f"vae/config.json: block_out_channels is {shown(blocks)}, expected 1 to {_MAX_VAE_BLOCKS} blocks"


def unet(configs: Configs) -> Iterator[Expected | str]:
    """The sizes of a UNet2DConditionModel and its AutoencoderKL."""
    yield from vae(configs)
    latents = configs["vae"]["latent_channels"]
    yield Expected("unet", "in_channels", latents, "the VAE's latent_channels")
    yield Expected("unet", "out_channels", latents, "the VAE's latent_channels")
    for key in ("encoder_hid_dim", "encoder_hid_dim_type", "class_embed_type", "num_class_embeds"):
        yield Expected("unet", key, None, "not supported in this family")


def packed_transformer(configs: Configs, *, axes: int = 3) -> Iterator[Expected | str]:
    """The sizes of a transformer like FLUX.1's and its VAE: latents packed by four, and `axes` axes of positions."""
    yield from vae(configs)
    transformer = configs["transformer"]
    packed = 4 * configs["vae"]["latent_channels"]
    yield Expected("transformer", "in_channels", packed, "4 times the VAE's latent_channels")
    if transformer["out_channels"] is not None:
        yield Expected("transformer", "out_channels", packed, "4 times the VAE's latent_channels")
    yield Expected("transformer", "patch_size", 1, "as in this family")
    yield rotations(configs, axes=axes)


def rotations(configs: Configs, *, axes: int) -> Expected:
    """The rotations by position cover a head of the transformer."""
    found = configs["transformer"]["axes_dims_rope"]
    rotated = total(*found) if len(found) == axes else None
    return Expected("transformer", "attention_head_dim", rotated, f"the sum of {axes} axes_dims_rope")


def in_range(part: str, key: str, found: int, *, least: int, most: int | None = None) -> Iterator[str]:
    """A fault, unless `found`, a value of `key` in the config of `part`, is in the range."""
    if found < least or (most is not None and found > most):
        bound = f"at least {least}" if most is None else f"from {least} to {most}"
        yield f"{part}/config.json: {key} is {found}, expected {bound}"


def total(*sizes: int | None) -> int | None:
    """The sum, or None if a size is None (null in its config)."""
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
