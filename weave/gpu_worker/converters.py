"""Tensors of single files get the names that the libraries' classes give them.

The UNet, most VAEs and OpenCLIP are converted by diffusers. Its converters of the transformers and of Wan's VAE copy
tensors or know the sizes of the published models only, so these have their own here; a test compares the two.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import single_file_utils as library

from weave.models.original_tables import BLOCK, FLUX, FLUX2, KREA2, SD3, Z_IMAGE, Table
from weave.models.single_files import DENOISER

Tensors = dict[str, torch.Tensor]
# What has been converted, and the names of the tensors that no converter knows.
Converted = tuple[Tensors, set[str]]


def convert(name: str, tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    """`name` is that of a converter (FilePart); `tensors` have no prefix; `config` is the component's."""
    return _CONVERTERS[name](tensors, config)


def _unet(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    defaults = {"layers_per_block": 2}
    converted = library.convert_ldm_unet_checkpoint(_with_prefix(DENOISER, tensors), {**defaults, **config})
    return converted, _left_out(tensors, converted)


def _controlnet(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    """diffusers' converter names tensors that the file lacks, and omits those that only SDXL has."""
    converted = library.convert_controlnet_checkpoint(tensors, {"layers_per_block": 2, **config})
    for name, renamed in library.DIFFUSERS_TO_LDM_MAPPING["controlnet"]["addition_embed_type"].items():
        converted[name] = tensors.get(renamed)
    converted = {name: tensor for name, tensor in converted.items() if tensor is not None}
    return converted, _left_out(tensors, converted)


def _vae(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    converted = library.convert_ldm_vae_checkpoint(tensors, config)
    return converted, _left_out(tensors, converted)


def _vae_of_flux2(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    """There the convolutions beside the latents belong to the encoder and the decoder. `bn` normalises latents."""
    moved = {
        name.replace("encoder.quant_conv.", "quant_conv.").replace("decoder.post_quant_conv.", "post_quant_conv."): it
        for name, it in tensors.items()
    }
    normalisation = {name: moved.pop(name) for name in list(moved) if name.startswith("bn.")}
    converted, unknown = _vae(moved, config)
    return converted | normalisation, unknown


def _vae_of_wan(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    """Wan's VAE is Qwen-Image's too."""
    converted: Tensors = {}
    unknown = set()
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if renamed := _renamed_in_wan(module, config.get("num_res_blocks", 2)):
            converted[f"{renamed}.{kind}"] = tensor
        else:
            unknown.add(name)
    return converted, unknown


_OUTSIDE_WAN_BLOCKS = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{
        f"{side}.{old}": f"{side}.{new}"
        for side in ("encoder", "decoder")
        for old, new in {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}.items()
    },
}
_IN_WAN_BLOCKS = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
    **{name: name for name in ("resample.1", "time_conv", "norm", "to_qkv", "proj")},
}


def _renamed_in_wan(module: str, resnets: int) -> str | None:
    """`resnets` is their number in a block of the encoder; the decoder's blocks have one more, then an upsampler."""
    found = re.fullmatch(r"(encoder|decoder)\.(middle\.[012]|downsamples\.\d+|upsamples\.\d+)\.(.+)", module)
    if found is None or found[3] not in _IN_WAN_BLOCKS:
        return _OUTSIDE_WAN_BLOCKS.get(module)
    kind, number = found[2].split(".")
    if kind == "middle":
        place = "mid_block." + ("resnets.0", "attentions.0", "resnets.1")[int(number)]
    elif kind == "downsamples":
        place = f"down_blocks.{number}"
    else:
        block, layer = divmod(int(number), resnets + 2)
        place = f"up_blocks.{block}." + (f"resnets.{layer}" if layer <= resnets else "upsamplers.0")
    return f"{found[1]}.{place}.{_IN_WAN_BLOCKS[found[3]]}"


def _open_clip(
    tensors: Tensors, config: Mapping[str, Any], prefix: str = "conditioner.embedders.1.model."
) -> Converted:
    model = SimpleNamespace(config=SimpleNamespace(**config))
    converted = library.convert_open_clip_checkpoint(model, _with_prefix(prefix, tensors), prefix)
    known = {"logit_scale", *library.DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"].values()}
    return converted, {name for name in tensors.keys() - known if not name.startswith("transformer.")}


def _open_clip_of_sd2(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    """sd2 uses the states before the last layer. So its config has 23 layers, and diffusers leaves out the file's last
    one and the projection, by their names with this prefix."""
    return _open_clip(tensors, config, "cond_stage_model.model.")


def _clip_of_sd3(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    """SD3 takes the first encoder's pooled states as they are: what some files have for a projection is not SD3's."""
    return {**tensors, "text_projection.weight": torch.eye(config["projection_dim"])}, set()


def _with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _left_out(tensors: Tensors, converted: Tensors) -> set[str]:
    """The names of those that are not among `converted`, in which each keeps its memory."""
    kept = {tensor.data_ptr() for tensor in converted.values()}
    return {name for name, tensor in tensors.items() if tensor.data_ptr() not in kept}


def _rename(table: Table, tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    """Views of the tensors, split by the rows' shares in `table`; copies of the few whose halves change places."""
    swapped = table.swapped(config)
    converted: Tensors = {}
    unknown = set()
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        block = BLOCK.search(module)
        shares = table.modules.get(module, table.modules.get(BLOCK.sub(".*.", module, count=1)))
        if shares == {}:
            continue
        rows = tensor.shape[0] if tensor.dim() else 0
        if shares is None or rows % sum(shares.values()):
            unknown.add(name)
            continue
        whole = torch.cat(tensor.chunk(2)[::-1]) if module in swapped else tensor
        sizes = [rows // sum(shares.values()) * share for share in shares.values()]
        for target, part in zip(shares, whole.split(sizes) if len(sizes) > 1 else [whole], strict=True):
            numbered = target.replace("*", block[1]) if block else target
            converted[f"{numbered}.{kind}" if kind else numbered] = part
    return converted, unknown


def _krea2(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    """In files the six vectors of a block's modulation are one."""
    converted, unknown = _rename(KREA2, tensors, config)
    for name, tensor in converted.items():
        if name.endswith(".scale_shift_table") and tensor.dim() == 1 and len(tensor) % 6 == 0:
            converted[name] = tensor.unflatten(0, (6, -1))
    return converted, unknown


_CONVERTERS: dict[str, Callable[[Tensors, Mapping[str, Any]], Converted]] = {
    "unet": _unet,
    "controlnet": _controlnet,
    "vae": _vae,
    "vae_of_flux2": _vae_of_flux2,
    "vae_of_wan": _vae_of_wan,
    "open_clip": _open_clip,
    "open_clip_of_sd2": _open_clip_of_sd2,
    "clip_of_sd3": _clip_of_sd3,
    "sd3": partial(_rename, SD3),
    "flux": partial(_rename, FLUX),
    "flux2": partial(_rename, FLUX2),
    "z_image": partial(_rename, Z_IMAGE),
    "krea2": _krea2,
}
