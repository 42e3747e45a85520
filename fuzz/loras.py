"""The target `loras`: which layers the keys of a LoRA's file name, for a model of each family; and what an embedding's
file holds."""

from contextlib import suppress
from math import prod

from fuzz.reading import Reader
from weave.models.embedding_keys import MAX_VECTORS, embedding_of
from weave.models.families import FAMILIES
from weave.models.files import ModelFilesRefused, Tensor
from weave.models.lora_keys import LoraHeader, matrices
from weave.models.lora_layers import Layers, patches

_CLIP = {"text_model.encoder.layers.0.self_attn.q_proj": (4, 4), "text_projection": (2, 4)}
_UNET = {
    "conv_in": (8, 4, 3, 3),
    "down_blocks.0.resnets.0.conv1": (8, 8, 3, 3),
    "down_blocks.0.attentions.0.proj_in": (8, 8, 1, 1),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (8, 8),
    "mid_block.resnets.1.time_emb_proj": (8, 4),
    "up_blocks.0.upsamplers.0.conv": (8, 8, 3, 3),
}
_BLOCK = {f"transformer_blocks.1.attn.{name}": (4, 8) for name in ("to_q", "to_k", "to_v", "to_out.0")}
_SINGLE = {
    f"single_transformer_blocks.0.{name}": (4, 8) for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
}
_T5 = {"encoder.block.0.layer.0.SelfAttention.q": (4, 4)}
MODELS: dict[str, Layers] = {
    "sd1": {"unet": _UNET, "text_encoder": _CLIP},
    "sdxl": {"unet": _UNET, "text_encoder": _CLIP, "text_encoder_2": _CLIP},
    "sd3": {"transformer": _BLOCK, "text_encoder": _CLIP, "text_encoder_2": _CLIP, "text_encoder_3": _T5},
    "flux": {"transformer": _BLOCK | _SINGLE, "text_encoder": _CLIP, "text_encoder_2": _T5},
}
DTYPES = ("F32", "F16", "BF16", "I64", "BOOL")


def loras(data: bytes) -> None:
    """patches() refuses a file or gives for each layer rows and columns that fit it, and none twice; embedding_of()
    gives all of its tensors."""
    reader = Reader(data)
    family = list(MODELS)[reader.byte() % len(MODELS)]
    layers, header = MODELS[family], header_of(reader)
    with suppress(ModelFilesRefused):
        known = matrices(header)
        found = patches(header, FAMILIES[family], layers, {"layers_per_block": 1, "num_layers": 2})
        assert {patch.down for patch in found} == {tensors.down for tensors in known}
        assert len({(patch.component, patch.layer) for patch in found}) == len(found) >= len(known) > 0
        for patch in found:
            shape = layers[patch.component][patch.layer]
            assert patch.rows.stop - patch.rows.start == shape[0]
            assert patch.rows.stop <= header.tensors[patch.up].shape[0]
            assert prod(header.tensors[patch.up].shape[1:]) == patch.rank == header.tensors[patch.down].shape[0]
            assert prod(header.tensors[patch.down].shape[1:]) == prod(shape[1:])

    with suppress(ModelFilesRefused):
        embedding = embedding_of(header.tensors)
        shapes = [header.tensors[key].shape for key in embedding.keys]
        assert set(embedding.keys) == header.tensors.keys()
        assert embedding.widths == tuple(shape[-1] for shape in shapes) and 1 <= embedding.vectors <= MAX_VECTORS
        assert [prod(shape) for shape in shapes] == [embedding.vectors * width for width in embedding.widths]


def header_of(reader: Reader) -> LoraHeader:
    """What read_safetensors_header() lets through. Of the input the first line is the settings of peft, and each other
    line a key, the number of a dtype, and the sides of a shape."""
    settings, *lines = reader.rest().decode(errors="replace").split("\n")
    tensors = {}
    for line in lines:
        key, *numbers = line.split(" ")
        sides = [int(number) for number in numbers if number.isascii() and number.isdigit() and len(number) < 8]
        tensors[key] = Tensor(DTYPES[sides[0] % len(DTYPES)] if sides else "F32", tuple(sides[1:]))
    return LoraHeader(tensors, {"lora_adapter_metadata": settings} if settings else None)
