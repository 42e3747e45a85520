"""How the ControlNets of a family are built: their class, what their config must share with the model that they are
used with, and how they come as single files. Files are read elsewhere: control_files.py.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec import Struct

from weave.models.components import BY_DIFFUSERS, ModelClass
from weave.models.configs import rules
from weave.models.files import Header
from weave.models.single_files import FilePart, blocks, context_width
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING, TEXT_TO_IMAGE

_LARGEST_TABLE = 1 << 29  # elements
_MOST_LEVELS = 16  # published UNets have three or four

Config = Mapping[str, Any]


class Unused(NamedTuple):
    """Of a single file whose tensor `zero` is all zeros, the tensors that begin with `prefix` are not used, and the
    config has the values in `config`."""

    zero: str
    prefix: str
    config: Mapping[str, Any]


class ControlNets(Struct, frozen=True, kw_only=True):
    """A family's ControlNets. `pipelines` are the classes in diffusers that apply them, by task.

    The config must have the model's own values for the keys in `equal`, and those in `fixed` for others (a tuple: any
    of these). `others` yields what else is wrong with it. For the keys in `alike`, a pipeline uses the first
    ControlNet's values for all. `tasks` are those that a ControlNet with this config is for, of a model with that one;
    None: all in `pipelines`. The pipelines of the tasks in `from_noise` take an image, but start from noise: they have
    no `strength`. `shares_layers`: the ControlNet has no weights for some layers, and uses the model's.

    A single file has tensors that begin with each of `marks` (a tuple within it: any of these). Its config is the
    model's own, except for what `derive` reads from names and shapes, and what `placed` then adds that depends on the
    model. `unused` says what is left out of some files. `width` is that of the text embeddings in published models, and
    `added_embedding` what UNets take in addition, where these tell the families apart."""

    model: ModelClass
    pipelines: Mapping[str, str]
    equal: tuple[str, ...]
    fixed: Mapping[str, Any] = MappingProxyType({})
    others: Callable[[Config, Config], Iterator[str]] = lambda config, model: iter(())
    alike: tuple[str, ...] = ()
    tasks: Callable[[Config, Config], Collection[str]] | None = None
    from_noise: tuple[str, ...] = ()
    shares_layers: bool = False
    file: FilePart
    marks: tuple[str | tuple[str, ...], ...]
    derive: Callable[[Header], dict[str, Any]]
    placed: Callable[[Config, Config], dict[str, Any]] = lambda config, model: {}
    unused: Unused | None = None
    width: int | None = None
    added_embedding: str | None = None


_UNET = ModelClass(
    library="diffusers",
    class_name="ControlNetModel",
    config=rules(
        BY_DIFFUSERS,
        size="""in_channels conditioning_channels block_out_channels[] norm_num_groups? cross_attention_dim
            encoder_hid_dim? attention_head_dim* num_attention_heads*? addition_time_embed_dim? num_class_embeds?
            projection_class_embeddings_input_dim? conditioning_embedding_out_channels[]
            addition_embed_type_num_heads""",
        count="freq_shift layers_per_block downsample_padding transformer_layers_per_block*",
        number="mid_block_scale_factor",
        fraction="norm_eps",
        flag="flip_sin_to_cos only_cross_attention* use_linear_projection upcast_attention global_pool_conditions",
        name="""down_block_types[] mid_block_type? act_fn encoder_hid_dim_type? class_embed_type? addition_embed_type?
            resnet_time_scale_shift controlnet_conditioning_channel_order""",
    ),
    defaults={
        "in_channels": 4,
        "conditioning_channels": 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "downsample_padding": 1,
        "cross_attention_dim": 1280,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "class_embed_type": None,
        "num_class_embeds": None,
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
        "controlnet_conditioning_channel_order": "rgb",
    },
)


def _of_unet(config: Config, model: Config) -> Iterator[str]:
    """Each number of conditioning_embedding_out_channels except the first halves the image's sides, as the VAE does."""
    found = len(config["conditioning_embedding_out_channels"])
    if found != (expected := model["vae_blocks"]):
        yield f"conditioning_embedding_out_channels has {found} numbers, expected {expected} (as the VAE has blocks)"
    if (order := config["controlnet_conditioning_channel_order"]) not in ("rgb", "bgr"):
        yield f"controlnet_conditioning_channel_order is {order}, expected rgb or bgr"


def _derive_unet(found: Header) -> dict[str, Any]:
    """The layers that take the control image are called input_hint_block in the original files."""
    original = "input_hint_block.0.weight" in found
    if original:
        layers = [
            f"input_hint_block.{number}.weight" for number in blocks(found, "input_hint_block") if number % 4 == 0
        ]
    else:
        name = "controlnet_cond_embedding.blocks"
        layers = [f"{name}.{number}.weight" for number in blocks(found, name) if number % 2 == 1]
        layers.insert(0, "controlnet_cond_embedding.conv_in.weight")
    shapes = [found[layer].shape for layer in layers if layer in found and len(found[layer].shape) == 4]
    config: dict[str, Any] = {"conditioning_embedding_out_channels": [shape[0] for shape in shapes]}
    config |= {"conditioning_channels": shapes[0][1]} if shapes else {}
    width = context_width(found)
    config |= {} if width is None else {"cross_attention_dim": width}
    added = "label_emb.0.0.weight" if original else "add_embedding.linear_1.weight"
    config["addition_embed_type"] = "text_time" if added in found else None
    return config if original else config | _derive_attention(found)


def _derive_attention(found: Header) -> dict[str, Any]:
    """Small ControlNets of SDXL have fewer blocks with attention than the model, or none."""
    levels = blocks(found, "down_blocks")[:_MOST_LEVELS]
    layers = [len(blocks(found, f"down_blocks.{level}.attentions.0.transformer_blocks")) for level in levels]
    middle = len(blocks(found, "mid_block.attentions.0.transformer_blocks"))
    if middle and layers and not layers[-1]:
        layers[-1] = middle  # the class uses the last block's number for the middle
    return {
        "down_block_types": [
            "CrossAttnDownBlock2D" if blocks(found, f"down_blocks.{level}.attentions") else "DownBlock2D"
            for level in levels
        ],
        "transformer_layers_per_block": [max(count, 1) for count in layers],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
    }


def _of_unets(width: int, text_to_image: str, added_embedding: str | None = None) -> ControlNets:
    name = text_to_image.removesuffix("Pipeline")
    return ControlNets(
        model=_UNET,
        pipelines={
            TEXT_TO_IMAGE: text_to_image,
            IMAGE_TO_IMAGE: f"{name}Img2ImgPipeline",
            INPAINTING: f"{name}InpaintPipeline",
        },
        equal=(
            *("in_channels", "block_out_channels", "layers_per_block", "downsample_padding", "cross_attention_dim"),
            *("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
        ),
        fixed={
            "conditioning_channels": 3,
            **dict.fromkeys(("encoder_hid_dim", "encoder_hid_dim_type", "class_embed_type", "num_class_embeds")),
        },
        others=_of_unet,
        file=FilePart(("control_model.",), "controlnet", ("controlnet_cond_embedding.",)),
        marks=(("controlnet_cond_embedding.", "input_hint_block."),),
        derive=_derive_unet,
        width=width,
        added_embedding=added_embedding,
    )


SD1 = _of_unets(768, "StableDiffusionControlNetPipeline")
SD2 = _of_unets(1024, "StableDiffusionControlNetPipeline")
SDXL = _of_unets(2048, "StableDiffusionXLControlNetPipeline", "text_time")


def _of_sd3(config: Config, model: Config) -> Iterator[str]:
    """ControlNets of SD 3.5 large take no text, and use the model's positions."""
    inner = config["num_attention_heads"] * config["attention_head_dim"]
    if inner != (expected := model["num_attention_heads"] * model["attention_head_dim"]):
        yield f"num_attention_heads times attention_head_dim is {inner}, expected {expected} (as the model's)"
    if config["joint_attention_dim"] is not None:
        for key, wanted in (("joint_attention_dim", model["joint_attention_dim"]), ("caption_projection_dim", inner)):
            if config[key] != wanted:
                yield f"{key} is {config[key]}, expected {wanted} (as the model's)"
    if config["num_layers"] < 1:
        yield "num_layers is 0, expected at least 1"
    side, least = config["pos_embed_max_size"], model["pos_embed_max_size"]
    if side < least or side * side * inner > _LARGEST_TABLE:
        yield f"pos_embed_max_size is {side}, expected {least} (as the model's) or a little more"


def _derive_sd3(found: Header) -> dict[str, Any]:
    layers = blocks(found, "transformer_blocks")
    config: dict[str, Any] = {
        "num_layers": len(layers),
        "dual_attention_layers": blocks(found, "transformer_blocks", "attn2."),
        "use_pos_embed": "pos_embed.proj.weight" in found,
    }
    if "context_embedder.weight" not in found:
        config["joint_attention_dim"] = None
    if "pos_embed.pos_embed" not in found:
        config["pos_embed_type"] = None
    return config


SD3 = ControlNets(
    model=ModelClass(
        library="diffusers",
        class_name="SD3ControlNetModel",
        config=rules(
            BY_DIFFUSERS,
            side="sample_size pos_embed_max_size patch_size",
            size="""in_channels out_channels attention_head_dim num_attention_heads joint_attention_dim?
                caption_projection_dim pooled_projection_dim""",
            count="num_layers dual_attention_layers[] extra_conditioning_channels",
            name="qk_norm? pos_embed_type?",
            flag="use_pos_embed force_zeros_for_pooled_projection",
        ),
        defaults={
            "in_channels": 16,
            "patch_size": 2,
            "num_layers": 18,
            "attention_head_dim": 64,
            "num_attention_heads": 18,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1152,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 96,
            "extra_conditioning_channels": 0,
            "use_pos_embed": True,
            "force_zeros_for_pooled_projection": True,
        },
    ),
    # diffusers' class for inpainting takes the image in place of a control image, with a mask as a further channel.
    pipelines={TEXT_TO_IMAGE: "StableDiffusion3ControlNetPipeline"},
    equal=("in_channels", "patch_size", "pooled_projection_dim"),
    fixed={"extra_conditioning_channels": 0},
    others=_of_sd3,
    alike=("joint_attention_dim", "use_pos_embed", "force_zeros_for_pooled_projection"),
    file=FilePart(()),
    marks=("pos_embed_input.",),
    derive=_derive_sd3,
)
