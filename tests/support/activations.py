"""The peak size of the published models' activations. Their classes are called with tensors on torch's meta device,
which have a shape but no memory, and each result is counted from its creation until it is freed.

Not counted: the workspace of operations (cuDNN, cuBLAS), and losses in torch's allocator. Attention is counted as in
fused kernels, without the matrix of all pairs.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from msgspec import structs
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.published import PUBLISHED, on_meta
from weave.models.components import ModelClass
from weave.models.families import FAMILIES
from weave.models.family import Activations

# By family: the model whose config stands for it, the largest where there are several.
MODELS = {
    "sd1": "Stable Diffusion 1.5",
    "sd2": "Stable Diffusion 2.1",
    "sdxl": "SDXL",
    "sd3": "SD 3.5",
    "flux": "FLUX.1-dev",
    "chroma": "Chroma1-HD",
    "z-image": "Z-Image-Turbo",
    "flux2-klein": "FLUX.2-klein-4B",
    "qwen-image": "Qwen-Image",
    "krea2": "Krea-2-Turbo",
}


class _Fused(TorchFunctionMode):  # type: ignore[misc]
    """scaled_dot_product_attention() as on a GPU: its result is all that it makes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            query, _, value = args if len(args) == 3 else [(kwargs or {})[name] for name in ("query", "key", "value")]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return function(*args, **(kwargs or {}))


class _Peak(TorchDispatchMode):  # type: ignore[misc]
    """Counts the bytes of tensors that operations make and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._total = 0
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {it.untyped_storage()._cdata for it in tree_leaves((args, kwargs)) if isinstance(it, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in before:
                storage = tensor.untyped_storage()
                _, former = self._living.get(storage._cdata, (None, 0))
                self._living[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self._total += storage.nbytes() - former
        if self._total > self.peak:  # unless some have been freed meanwhile
            self._living = {key: held for key, held in self._living.items() if not held[0].expired()}
            self._total = sum(size for _, size in self._living.values())
            self.peak = max(self.peak, self._total)
        return result


def peak_of(call: Callable[[], object]) -> int:
    """In bytes."""
    with torch.no_grad(), _Fused(), _Peak() as counted:
        call()
    return int(counted.peak)


def component(family: str, part: str) -> Any:
    """The real class, in bfloat16 and on the meta device."""
    described = FAMILIES[family].components[part]
    assert isinstance(described, ModelClass)
    config = dict(PUBLISHED[MODELS[family]][1][f"{part}/config.json"])
    for key in ("num_layers", "num_single_layers"):
        if key in config:  # each block takes what the one before it took
            config[key] = 3
    made = on_meta(described, config)
    return torch.nn.Module.to(made, torch.bfloat16).eval()


def of_vae(family: str, side: int) -> int:
    """The most that decoding an image of side x side pixels takes, in bytes."""
    vae = component(family, "vae")
    of_video = family in ("qwen-image", "krea2")
    channels = (vae.config.z_dim, 1) if of_video else (vae.config.latent_channels,)
    latents = half(1, *channels, side // 8, side // 8)
    return peak_of(lambda: vae.decode(latents, return_dict=False)[0])


def of_denoiser(family: str, side: int) -> int:
    """The most that a step with guidance takes for an image of side x side pixels, in bytes."""
    denoiser = component(family, FAMILIES[family].denoiser)
    given = INPUTS[family](denoiser.config, side // 8)
    if isinstance(given, tuple):
        return peak_of(lambda: denoiser(*given, return_dict=False))
    return peak_of(lambda: denoiser(**given, return_dict=False))


def measured(family: str) -> Activations:
    """As in the family's description."""
    small, large = (of_denoiser(family, side) for side in (512, 1024))
    each = (large - small) / (1024**2 - 512**2)
    return structs.replace(
        FAMILIES[family].activations,
        denoiser=ceil(each),
        text=max(0, ceil((small - each * 512**2) / 1e6)) * 1_000_000,
        vae=ceil(of_vae(family, 1024) / 1024**2),
    )


def half(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def _unet(config: Any, side: int) -> Any:
    given = {"sample": half(2, 4, side, side), "timestep": half(1), "encoder_hidden_states": half(2, 77, 2048)}
    given["encoder_hidden_states"] = half(2, 77, config.cross_attention_dim)
    if config.addition_embed_type is not None:
        given["added_cond_kwargs"] = {"text_embeds": half(2, 1280), "time_ids": half(2, 6)}
    return given


def _sd3(config: Any, side: int) -> Any:
    return {
        "hidden_states": half(2, config.in_channels, side, side),
        "encoder_hidden_states": half(2, 77 + 256, config.joint_attention_dim),
        "pooled_projections": half(2, config.pooled_projection_dim),
        "timestep": half(2),
    }


def _packed(config: Any, side: int, *, axes: int = 3, **more: Any) -> dict[str, Any]:
    pixels = (side // 2) ** 2
    return {
        "hidden_states": half(1, pixels, config.in_channels),
        "encoder_hidden_states": half(1, 512, config.joint_attention_dim),
        "timestep": half(1),
        "img_ids": torch.empty(pixels, axes, device="meta"),
        "txt_ids": torch.empty(512, axes, device="meta"),
        **more,
    }


def _flux(config: Any, side: int) -> Any:
    return _packed(config, side, pooled_projections=half(1, config.pooled_projection_dim), guidance=half(1))


def _chroma(config: Any, side: int) -> Any:
    return _packed(config, side, attention_mask=half(1, 512 + (side // 2) ** 2))


def _z_image(config: Any, side: int) -> Any:
    latents, text = half(config.in_channels, 1, side, side), half(512, config.cap_feat_dim)
    return ([latents, latents], half(2), [text, text])


def _qwen_image(config: Any, side: int) -> Any:
    return {
        "hidden_states": half(1, (side // 2) ** 2, config.in_channels),
        "encoder_hidden_states": half(1, 512, config.joint_attention_dim),
        "timestep": half(1),
        "img_shapes": [[(1, side // 2, side // 2)]],
    }


def _krea2(config: Any, side: int) -> Any:
    pixels = (side // 2) ** 2
    return {
        "hidden_states": half(1, pixels, config.in_channels),
        "encoder_hidden_states": half(1, 512, config.num_text_layers, config.text_hidden_dim),
        "timestep": half(1),
        "position_ids": torch.empty(512 + pixels, 3, device="meta"),
    }


INPUTS: dict[str, Callable[[Any, int], Any]] = {
    "sd1": _unet,
    "sd2": _unet,
    "sdxl": _unet,
    "sd3": _sd3,
    "flux": _flux,
    "chroma": _chroma,
    "z-image": _z_image,
    "flux2-klein": lambda config, side: _packed(config, side, axes=4),
    "qwen-image": _qwen_image,
    "krea2": _krea2,
}
