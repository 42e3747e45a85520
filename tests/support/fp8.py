"""Files with matrices in 8 bits."""

import torch


def scaled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The matrices in 8 bits, each with a scale, as ComfyUI stores them."""
    stored = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and name.endswith(".weight"):
            scale = tensor.abs().max() / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + "scale_weight"] = scale
        else:
            stored[name] = tensor
    return stored


def scaled_by_row(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The matrices in 8 bits, each with a scale for each row."""
    stored = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and name.endswith(".weight"):
            scale = tensor.abs().amax(dim=1, keepdim=True).clamp(min=1e-6) / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale"] = scale
        else:
            stored[name] = tensor
    return stored


def unscaled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: tensor.float() * tensors[name.removesuffix("weight") + "scale_weight"]
        if tensor.dtype == torch.float8_e4m3fn
        else tensor
        for name, tensor in tensors.items()
        if not name.endswith("scale_weight") and name != "scaled_fp8"
    }


def rounded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The matrices in 8 bits."""
    return {
        name: tensor.to(torch.float8_e4m3fn) if tensor.dim() == 2 and name.endswith(".weight") else tensor
        for name, tensor in tensors.items()
    }
