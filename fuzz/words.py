"""A dictionary of the words in the messages. The fuzzer cannot find them itself: msgspec's decoders are not
instrumented."""

from collections.abc import Iterator
from typing import Any

from msgspec import inspect

from fuzz.control import UNIONS
from weave.config.schema import Config
from weave.protocol import client_messages
from weave.protocol.errors import ErrorCode
from weave.protocol.frames import Kind, pack_header

_TYPES: dict[str, tuple[Any, ...]] = {
    "operations": (client_messages.ClientMessage,),
    "events": (client_messages.Event,),
    "config": (Config,),
    "control": UNIONS,
    "worker_replies": UNIONS,
}
_OTHER: dict[str, tuple[bytes, ...]] = {
    # Clients accept any name for these.
    "events": tuple(b'"%b"' % word.encode() for word in (*ErrorCode, "running", "text_encoder", "text-to-image")),
    "uploads": (
        *(
            b'{"op":"generate","prompt":"x","image":{"width":1,"height":1}}',
            b'"mask":',
            b'"channels":1',
            b'"strength":1',
        ),
        *(b'{"op":"cancel","request":1}', pack_header(Kind.IMAGE, 1, 1), pack_header(Kind.CONTROL, 1, 15)),
    ),
    # 64, 100, 2048 and 20.0: the bounds of version 1.
    "version1": (b"\0\0\0\x40", b"\0\0\0\x64", b"\0\0\x08\0", b"\x41\xa0\0\0"),
    "safetensors": (b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"F32"', b'"BOOL"', b"[0,4]"),
    "gguf": (b"GGUF\3\0\0\0", b"general.alignment", *(bytes([size, 0, 0, 0]) for size in (4, 8, 9, 12, 32))),
    "single_file": (
        *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"F32"', b"[0,4]", b'"model.diffusion_model.'),
        *(b"input_blocks.0.0.weight", b"label_emb.0.0.weight", b"x.attn2.to_k.weight", b"context_embedder.weight"),
        *(b"joint_blocks.0.x_block.attn.qkv.weight", b"pos_embed", b"x_block.attn2.", b"x_block.attn.ln_q."),
        *(b"double_blocks.0.img_attn.qkv.weight", b"vector_in.in_layer.weight", b"single_blocks.", b'"v_pred"'),
        *(b"distilled_guidance_layer.in_proj.weight", b"distilled_guidance_layer.layers.0.", b"img_in.weight"),
        *(b"cap_pad_token", b"double_stream_modulation_img.lin.weight", b"txtfusion.projector.weight"),
        *(b"txt_norm.weight", b"transformer_blocks.0.img_mod.1.weight"),
    ),
    "recipes": (
        *(b"Steps: 1", b", Sampler: Euler a", b", Schedule type: Karras", b", CFG scale: 7", b", Size: 64x64", b"\n"),
        *(b"Negative prompt: ", b"<lora:a:1>", b", Denoising strength: 0.5", b", Hires upscale: 2", b"tEXt", b"zTXt"),
        *(
            b"iTXt",
            b"IEND",
            b"pass ",
            b"inputs ",
            b"control ",
            b"image ",
            b'{"width":8,"height":8}',
            b"loras [",
            b"seed ",
        ),
    ),
    "loras": tuple(
        word.encode()
        for word in (
            *("lora_unet_", "lora_te1_", "lora_te3_", "unet.", "transformer.", "base_model.model.", "text_encoder."),
            *(".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".alpha", "_lora.up.weight"),
            *("conv_in", "input_blocks_1_0_in_layers_2", "x_block_attn_qkv", "single_blocks_0_linear1", "dora_scale"),
            *("emb_params", "clip_l", "clip_g", "text_encoders_0", "text_encoders_1", " 0 2 768", " 1 2 1280"),
            *('{"unet.lora_alpha":2}', '"use_rslora"', "\n", " 0 2 8", " 0 8 2"),
        )
    ),
    "controls": tuple(
        word.encode()
        for word in (
            *(
                "controlnet_cond_embedding.conv_in.weight",
                "controlnet_cond_embedding.blocks.1.weight",
                "control_model.",
            ),
            *("input_hint_block.0.weight", "input_hint_block.4.weight", "label_emb.0.0.weight", "x.attn2.to_k.weight"),
            *("add_embedding.linear_1.weight", "down_blocks.0.attentions.0.transformer_blocks.0.", "mid_block."),
            *("pos_embed_input.proj.weight", "transformer_blocks.0.", "attn2.", "pos_embed.pos_embed"),
            *("context_embedder.weight", "controlnet_x_embedder.weight", "single_transformer_blocks.0."),
            *("txt_norm.weight", "img_in.weight", "control_all_x_embedder.2-1.weight", "control_layers.0."),
            *("control_noise_refiner.0.before_proj.weight", "controlnet_mode_embedder.weight"),
            *(" 0 16 3 3 3", " 0 320 768", " 0 1", "\n"),
        )
    ),
    "relay": (b'"event"', b'"time"', b'"process"', b'"serving"', b'"text"'),
    "config": (
        b"[[",
        b"]]",
        b'"""',
        b"'''",
        b"inf",
        b"nan",
        b"0x",
        b"1979-05-27T07:32:00Z",
        b"#conf.d",
        b"= {",
        b"\\u",
    ),
}


def dictionary(target: str) -> str:
    """A file for libFuzzer's -dict (llvm.org/docs/LibFuzzer.html, "Dictionaries")."""
    words = {word.encode() for kind in _TYPES.get(target, ()) for word in _names(inspect.type_info(kind))}
    tokens = [b"%b = " % word if target == "config" else b'"%b"' % word for word in sorted(words)]
    tokens += sorted(words) * (target == "config")
    tokens += _OTHER.get(target, ())
    if target in ("frames", "events"):
        tokens += [pack_header(kind, 0, 1, version=version) for kind in Kind for version in (1, 2)]
    return "".join('"{}"\n'.format("".join(f"\\x{byte:02x}" for byte in token)) for token in tokens)


def _names(kind: Any, seen: frozenset[Any] = frozenset()) -> Iterator[str]:
    """Fields, tags and the values of enums and literals, recursively."""
    if isinstance(kind, inspect.StructType):
        if kind.cls in seen:
            return
        yield from (word for word in (kind.tag_field, kind.tag) if isinstance(word, str))
        for field in kind.fields:
            yield field.encode_name
            yield from _names(field.type, seen | {kind.cls})
    elif isinstance(kind, inspect.UnionType):
        for part in kind.types:
            yield from _names(part, seen)
    elif isinstance(kind, inspect.LiteralType):
        yield from (value for value in kind.values if isinstance(value, str))
    elif isinstance(kind, inspect.EnumType):
        yield from (member.value for member in kind.cls)
    elif isinstance(kind, inspect.DictType):
        yield from _names(kind.value_type, seen)
    elif isinstance(kind, inspect.ListType | inspect.VarTupleType):
        yield from _names(kind.item_type, seen)
