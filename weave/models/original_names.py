"""The names that a denoiser's layers have in the code of its authors. Many LoRAs use these instead of diffusers' names.

Where the authors have one layer for several of diffusers (attention's q, k and v), its rows are theirs, one below the
other. Layers whose rows diffusers has in another order (the modulation of the last layer) are left out.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

from weave.models.original_tables import BLOCK, Table

# From the denoiser's layers, by their names in diffusers, and its config to pairs of an original name and a layer.
# Layers with the same original name are parts of it, in this order.
OriginalNames: TypeAlias = Callable[[Collection[str], Mapping[str, Any]], Iterator[tuple[str, str]]]

# Of a UNet's blocks; in attentions and upsamplers the names are the same.
_IN_BLOCKS = {
    "resnets": {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
}
_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def no_names(layers: Collection[str], config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """For a family whose LoRAs use only the names in diffusers."""
    yield from ()


def of_unet(layers: Collection[str], config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Stable Diffusion 1, 2 and XL: there each resnet, with the attention after it, is a block of its own."""
    per_block = config["layers_per_block"]
    if not isinstance(per_block, int):  # not so in the authors' models
        return
    for layer in layers:
        if layer in _OUTSIDE_BLOCKS:
            yield _OUTSIDE_BLOCKS[layer], layer
        elif found := re.fullmatch(r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.([a-z]+)\.(\d+)\.(.+)", layer):
            block, kind, number, inner = found.groups()
            original = _IN_BLOCKS[kind].get(inner) if kind in _IN_BLOCKS else inner
            if original is not None:  # the authors' models have no other layers
                yield f"{_place(block, kind, int(number), per_block, layers)}.{original}", layer


def _place(block: str, kind: str, number: int, per_block: int, layers: Collection[str]) -> str:
    """The original block, and the place in it, of a resnet, attention, downsampler or upsampler of `block`."""
    attention = 1 if kind == "attentions" else 0
    if block == "mid_block":
        return f"middle_block.{2 * number + attention}"
    name, _, index = block.partition(".")
    first = int(index) * (per_block + 1)
    if name == "up_blocks":
        if kind == "upsamplers":
            place = 2 if any(layer.startswith(f"{block}.attentions.") for layer in layers) else 1
            return f"output_blocks.{first + per_block}.{place}"
        return f"output_blocks.{first + number}.{attention}"
    if kind == "downsamplers":
        return f"input_blocks.{first + per_block + 1}.0"
    return f"input_blocks.{first + number + 1}.{attention}"


def by_table(table: Table) -> OriginalNames:
    """The modules of `table` that are not swapped."""

    def names(layers: Collection[str], config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        swapped = table.swapped(config)
        numbers = {block[1] for block in map(BLOCK.search, layers) if block}
        for module, parts in table.modules.items():
            for number in sorted(numbers) if "*" in module else [""]:
                original = module.replace("*", number)
                for layer in (part.replace("*", number) for part in parts):
                    if original not in swapped and layer in layers:
                        yield original, layer

    return names
