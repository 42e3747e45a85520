"""The ControlNets of FLUX.1, Qwen-Image and Z-Image: transformers that take the control image's latents."""

from collections.abc import Collection, Iterator
from typing import Any

from weave.models.components import BY_DIFFUSERS, ModelClass
from weave.models.configs import rules
from weave.models.control_nets import Config, ControlNets, Unused
from weave.models.files import Header
from weave.models.single_files import FilePart, blocks
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING, TEXT_TO_IMAGE


def _derive_flux(found: Header) -> dict[str, Any]:
    modes = found.get("controlnet_mode_embedder.weight")
    return {
        "num_layers": len(blocks(found, "transformer_blocks")),
        "num_single_layers": len(blocks(found, "single_transformer_blocks")),
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in found,
        "num_mode": modes.shape[0] if modes is not None and modes.shape else None,
    }


FLUX = ControlNets(
    model=ModelClass(
        library="diffusers",
        class_name="FluxControlNetModel",
        config=rules(
            f"{BY_DIFFUSERS} out_channels",
            side="patch_size",
            size="""in_channels attention_head_dim num_attention_heads joint_attention_dim pooled_projection_dim
                axes_dims_rope[] num_mode? conditioning_embedding_channels?""",
            count="num_layers num_single_layers",
            flag="guidance_embeds",
        ),
        defaults={
            "in_channels": 64,
            "patch_size": 1,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "axes_dims_rope": [16, 56, 56],
            "guidance_embeds": False,
            "num_mode": None,
            "conditioning_embedding_channels": None,
        },
    ),
    pipelines={
        TEXT_TO_IMAGE: "FluxControlNetPipeline",
        IMAGE_TO_IMAGE: "FluxControlNetImg2ImgPipeline",
        INPAINTING: "FluxControlNetInpaintPipeline",
    },
    equal=(
        *("in_channels", "patch_size", "attention_head_dim", "num_attention_heads"),
        *("joint_attention_dim", "pooled_projection_dim", "axes_dims_rope"),
    ),
    # With num_mode a request would have to name the kind of image. With conditioning_embedding_channels the ControlNet
    # takes the image instead of its latents.
    fixed={"num_mode": None, "conditioning_embedding_channels": None},
    alike=("guidance_embeds",),
    file=FilePart(()),
    marks=("controlnet_x_embedder.", "context_embedder."),
    derive=_derive_flux,
)


_QWEN_MASK = 4  # channels of a packed mask


def _of_qwen_image(config: Config, model: Config) -> Iterator[str]:
    found, most = config["num_layers"], model["num_layers"]
    if not 1 <= found <= most:
        yield f"num_layers is {found}, expected 1 to {most} (as the model's)"


def _tasks_of_qwen_image(config: Config, model: Config) -> Collection[str]:
    """diffusers' class for inpainting takes the image to repaint as the control image, and a mask."""
    return (INPAINTING,) if config["extra_condition_channels"] else (TEXT_TO_IMAGE,)


def _width_of(header: Header, name: str) -> int:
    """Of the layer's input; 0 without such a layer."""
    tensor = header.get(name)
    return tensor.shape[1] if tensor is not None and len(tensor.shape) > 1 else 0


def _derive_qwen_image(found: Header) -> dict[str, Any]:
    extra = _width_of(found, "controlnet_x_embedder.weight") - _width_of(found, "img_in.weight")
    return {"num_layers": len(blocks(found, "transformer_blocks")), "extra_condition_channels": extra}


QWEN_IMAGE = ControlNets(
    model=ModelClass(
        library="diffusers",
        class_name="QwenImageControlNetModel",
        config=rules(
            # diffusers makes ControlNets from the transformer's config, and keeps its other keys.
            f"""{BY_DIFFUSERS} guidance_embeds pooled_projection_dim zero_cond_t use_additional_t_cond
            use_layer3d_rope""",
            side="patch_size",
            size="""in_channels out_channels? attention_head_dim num_attention_heads joint_attention_dim
                axes_dims_rope[]""",
            count="num_layers extra_condition_channels",
        ),
        defaults={
            "in_channels": 64,
            "patch_size": 2,
            "num_layers": 60,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 3584,
            "axes_dims_rope": [16, 56, 56],
            "extra_condition_channels": 0,
        },
    ),
    pipelines={
        TEXT_TO_IMAGE: "QwenImageControlNetPipeline",
        INPAINTING: "QwenImageControlNetInpaintPipeline",
    },
    equal=(
        *("in_channels", "patch_size", "attention_head_dim", "num_attention_heads"),
        *("joint_attention_dim", "axes_dims_rope"),
    ),
    fixed={"extra_condition_channels": (0, _QWEN_MASK)},
    others=_of_qwen_image,
    tasks=_tasks_of_qwen_image,
    from_noise=(INPAINTING,),
    file=FilePart(()),
    marks=("controlnet_x_embedder.", "txt_norm."),
    derive=_derive_qwen_image,
)


_REFINER = "control_noise_refiner"
_REFINED_BY = "add_control_noise_refiner"


def _of_z_image(config: Config, model: Config) -> Iterator[str]:
    """The output of each layer of the ControlNet is added to that of one of the model's. Its first layer takes the
    control image, the others the output of the layer before."""
    places, layers = config["control_layers_places"], model["n_layers"]
    if not places or places[0] != 0 or not _rise(places, layers):
        yield f"control_layers_places is {places}, expected rising numbers from 0, all below {layers} (the model's)"
    if (width := config["control_in_dim"]) not in (expected := _widths(model)):
        yield f"control_in_dim is {width}, expected {expected[0]} or, for inpainting too, {expected[1]}"
    if config[_REFINED_BY] is None:
        return
    places, layers = config["control_refiner_layers_places"], model["n_refiner_layers"]
    most = layers if config[_REFINED_BY] == _REFINER else len(config["control_layers_places"])
    if places is None or len(places) > most or not _rise(places, layers):
        yield f"control_refiner_layers_places is {places}, expected up to {most} rising numbers, all below {layers}"


def _rise(places: list[Any], below: int) -> bool:
    """Whether these are whole numbers less than `below`, each larger than the one before it."""
    return all(isinstance(place, int) and place < below for place in places) and places == sorted(set(places))


def _widths(model: Config) -> tuple[int, int]:
    """Channels of the control image's latents, and with a mask and the latents of the image to repaint."""
    return model["in_channels"], 2 * model["in_channels"] + 1


def _tasks_of_z_image(config: Config, model: Config) -> Collection[str]:
    takes_mask = config["control_in_dim"] == _widths(model)[1]
    return (TEXT_TO_IMAGE, INPAINTING) if takes_mask else (TEXT_TO_IMAGE,)


def _derive_z_image(found: Header) -> dict[str, Any]:
    """Union 1.0 refines the control image with the model's kind of block, 2.0 with the control layers, 2.1 with control
    blocks of its own. Files of 2.0 have those too, all zeros."""
    controls = f"{_REFINER}.0.before_proj.weight" in found
    refiners = len(blocks(found, _REFINER))
    config: dict[str, Any] = {
        "control_layers_places": list(range(len(blocks(found, "control_layers")))),
        "control_in_dim": _width_of(found, "control_all_x_embedder.2-1.weight") // 4,
        _REFINED_BY: (_REFINER if controls else None) if refiners else "control_layers",
    }
    return config | ({"n_refiner_layers": refiners} if refiners else {})


def _placed_in_z_image(config: Config, model: Config) -> dict[str, Any]:
    """Distributes the layers evenly over the model's, as their authors do."""
    layers, count = model["n_layers"], max(len(config["control_layers_places"]), 1)
    refiners = [] if config[_REFINED_BY] is None else list(range(model["n_refiner_layers"]))
    places = list(range(0, layers, max(layers // count, 1)))
    return {"control_layers_places": places, "control_refiner_layers_places": refiners}


Z_IMAGE = ControlNets(
    model=ModelClass(
        library="diffusers",
        class_name="ZImageControlNetModel",
        config=rules(
            BY_DIFFUSERS,
            side="all_patch_size[] all_f_patch_size[]",
            size="control_in_dim dim n_heads n_kv_heads",
            count="control_layers_places[] control_refiner_layers_places[]? n_refiner_layers",
            fraction="norm_eps",
            name="add_control_noise_refiner?",
            flag="qk_norm",
        ),
        defaults={
            "control_layers_places": None,
            "control_refiner_layers_places": None,
            "control_in_dim": None,
            _REFINED_BY: None,
            "all_patch_size": [2],
            "all_f_patch_size": [1],
            "dim": 3840,
            "n_refiner_layers": 2,
            "n_heads": 30,
            "n_kv_heads": 30,
            "qk_norm": True,
        },
    ),
    pipelines={TEXT_TO_IMAGE: "ZImageControlNetPipeline", INPAINTING: "ZImageControlNetInpaintPipeline"},
    equal=("all_patch_size", "all_f_patch_size", "dim", "n_refiner_layers", "n_heads", "n_kv_heads", "qk_norm"),
    fixed={_REFINED_BY: (None, "control_layers", _REFINER)},
    others=_of_z_image,
    tasks=_tasks_of_z_image,
    from_noise=(INPAINTING,),
    shares_layers=True,
    file=FilePart(()),
    marks=("control_all_x_embedder.",),
    derive=_derive_z_image,
    placed=_placed_in_z_image,
    unused=Unused(f"{_REFINER}.0.before_proj.weight", f"{_REFINER}.", {_REFINED_BY: "control_layers"}),
)
