"""Qwen's processor, which prepares images for Qwen2.5-VL, and the check that the two fit together."""

from collections.abc import Iterator, Mapping
from typing import Any

from weave.models.components import ProcessorClass
from weave.models.configs import rules, shown
from weave.models.qwen import QWEN_TOKENIZER, text_size
from weave.models.sizes import Configs

# transformers writes most of the ignored keys for other image processors; layouts.py checks the classes' names.
QWEN_PROCESSOR = ProcessorClass(
    class_name="Qwen2VLProcessor",
    # The others need torchvision.
    image_processors=("Qwen2VLImageProcessorPil", "Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast"),
    tokenizer=QWEN_TOKENIZER,
    config=rules(
        """processor_class image_processor_type feature_extractor_type tokenizer_class crop_size data_format
            default_to_square device disable_grouping do_center_crop do_pad input_data_format pad_size
            return_tensors size_divisor""",
        side="patch_size? temporal_patch_size? merge_size?",
        pixels="min_pixels? max_pixels?",
        filter="resample?",
        fraction="rescale_factor?",
        number="image_mean[]?",
        positive="image_std[]?",
        flag="do_resize? do_rescale? do_normalize? do_convert_rgb?",
        objects={"size": rules(pixels="shortest_edge longest_edge")},
    ),
    defaults={},
    aliases=("Qwen2_5_VLProcessor",),
)

# The classes' own values for keys that a config lacks.
_VISION = {
    "hidden_size": 3584,
    "num_heads": 16,
    "in_channels": 3,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
}
_PREPARED = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "do_resize": True}
_SHORTEST, _LONGEST = 56 * 56, 28 * 28 * 1280


def vision_faults(configs: Configs, *, pixels: int, most_tokens: int) -> Iterator[str]:
    """Why QWEN2_5_VL cannot take the images that QWEN_PROCESSOR prepares. An image from the pipeline has `pixels`
    pixels, and may become at most `most_tokens` tokens."""
    vision = _VISION | (configs["text_encoder"].get("vision_config") or {})
    prepared = _PREPARED | {key: value for key, value in configs["processor"].items() if value is not None}
    where = "text_encoder/config.json: vision_config"
    if vision["in_channels"] != 3:
        yield f"{where}: in_channels is {vision['in_channels']}, expected 3 (red, green, blue)"
    if vision["out_hidden_size"] != (width := text_size(configs, "hidden_size")):
        yield f"{where}: out_hidden_size is {vision['out_hidden_size']}, expected {width} (text_config's hidden_size)"
    if vision["hidden_size"] % (4 * vision["num_heads"]):  # rotated in pairs, by row and by column
        yield f"{where}: hidden_size is {vision['hidden_size']}, expected a multiple of 4 times num_heads"
    for key, own in (("patch_size",) * 2, ("temporal_patch_size",) * 2, ("merge_size", "spatial_merge_size")):
        if prepared[key] != vision[own]:
            yield f"processor: {key} is {prepared[key]}, expected {shown(vision[own])} ({where}: {own})"
    side = prepared["patch_size"] * prepared["merge_size"]
    if vision["window_size"] < side:
        yield f"{where}: window_size is {vision['window_size']}, expected at least patch_size times spatial_merge_size"
    if not prepared["do_resize"]:
        yield "processor: do_resize is false, expected true"
    for key in ("image_mean", "image_std"):
        if len(prepared.get(key, "rgb")) != 3:
            yield f"processor: {key} has {len(prepared[key])} values, expected 3"
    yield from _resize_faults(prepared, side, pixels, most_tokens)


def _resize_faults(prepared: Mapping[str, Any], side: int, pixels: int, most_tokens: int) -> Iterator[str]:
    size = prepared.get("size", {"shortest_edge": _SHORTEST, "longest_edge": _LONGEST})
    shortest = prepared.get("min_pixels", size.get("shortest_edge"))
    longest = prepared.get("max_pixels", size.get("longest_edge"))
    if shortest is None or longest is None:
        yield "processor: size has no shortest_edge or no longest_edge"
    elif shortest > longest:
        yield f"processor: size: shortest_edge is {shortest}, expected at most longest_edge, which is {longest}"
    elif (tokens := max(shortest, min(longest, pixels)) // side**2) > most_tokens:
        yield f"processor: an image would become {tokens} tokens, expected at most {most_tokens}"
