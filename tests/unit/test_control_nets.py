"""ControlNets of the published sizes, without their weights: configs, single files and the names in the original files.
Descriptions equal the installed classes."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.support.control_nets import original_name
from weave.gpu_worker.converters import convert
from weave.models import control_files
from weave.models.assets import SHIPPED
from weave.models.configs import KINDS
from weave.models.control_files import find_control
from weave.models.control_nets import ControlNets
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.models.files import ModelFilesRefused, Tensor

# Z-Image's ControlNets, of which the class has no defaults.
UNION_2 = {
    "control_layers_places": [*range(0, 30, 2)],
    "control_refiner_layers_places": [0, 1],
    "control_in_dim": 33,
    "add_control_noise_refiner": "control_noise_refiner",
}
NETS = {name: family.control_nets for name, family in FAMILIES.items() if family.control_nets is not None}


def on_meta(class_name: str, config: Mapping[str, Any]) -> Any:
    with torch.device("meta"):
        return getattr(diffusers, class_name)(**config)


def published(name: str, **changed: Any) -> tuple[Any, dict[str, Any]]:
    """A ControlNet for the family's published model, and that model's own config."""
    family, nets = FAMILIES[name], NETS[name]
    shipped = SHIPPED / name / family.denoiser / "config.json"
    config = json.loads(shipped.read_text()) if shipped.exists() else {}  # the class's defaults are the published ones
    component = family.components[family.denoiser]
    denoiser = dict(on_meta(component.class_name, {k: v for k, v in config.items() if k[0] != "_"}).config)
    own = dict(UNION_2) if name == "z-image" else {}
    own |= {key: denoiser[key] for key in nets.model.config.keys if key in denoiser}
    return on_meta(nets.model.class_name, own | changed), denoiser


def header_of(net: Any, rename: Any = lambda name: name) -> dict[str, Tensor]:
    return {rename(name): Tensor("F16", tuple(tensor.shape)) for name, tensor in net.state_dict().items()}


def found_in(
    header: dict[str, Tensor], name: str, denoiser: dict[str, Any], file: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    file.touch()
    monkeypatch.setattr(control_files, "read_header", lambda path: header)
    return find_control(name, file, "float16", denoiser, 4).config


CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("sd1", {}),
    "sd2": ("sd2", {}),
    "sdxl": ("sdxl", {}),
    "sdxl, mid": (
        "sdxl",
        {"transformer_layers_per_block": [1, 1, 1], "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2},
    ),
    "sdxl, small": ("sdxl", {"down_block_types": ["DownBlock2D"] * 3, "mid_block_type": "UNetMidBlock2D"}),
    "sd3": ("sd3", {"num_layers": 6}),
    "sd3 without text": ("sd3", {"num_layers": 3, "joint_attention_dim": None, "use_pos_embed": False}),
    "flux": ("flux", {"num_layers": 5, "num_single_layers": 10, "guidance_embeds": True}),
    "qwen-image": ("qwen-image", {"num_layers": 5}),
    "qwen-image, inpainting": ("qwen-image", {"num_layers": 6, "extra_condition_channels": 4}),
    "z-image 1.0": (
        *("z-image",),
        {"control_layers_places": [0, 5, 10, 15, 20, 25], "control_in_dim": 16, "add_control_noise_refiner": None},
    ),
    "z-image 2.0 without what it does not use": (
        *("z-image",),
        {**UNION_2, "add_control_noise_refiner": "control_layers"},
    ),
    "z-image 2.1": ("z-image", UNION_2),
    "z-image 2.1 lite": ("z-image", {**UNION_2, "control_layers_places": [0, 10, 20]}),
    "flux without single blocks": ("flux", {"num_layers": 6, "num_single_layers": 0}),
}


@pytest.mark.parametrize("name, changed", CHANGED.values(), ids=CHANGED)
def test_a_single_file_gives_a_net_of_its_own_size(
    name: str, changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, denoiser = published(name, **changed)
    config = found_in(header_of(net), name, denoiser, tmp_path / "net.safetensors", monkeypatch)
    if name in ("qwen-image", "z-image"):
        assert changed.items() <= config.items()
    again = on_meta(NETS[name].model.class_name, config)
    assert header_of(again) == header_of(net)
    assert control_files.families_of_control(tmp_path, header_of(net)) == (name,)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_the_original_names_are_those_of_diffusers(
    name: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, denoiser = published(name)
    layers = denoiser["layers_per_block"]
    header = header_of(net, lambda own: prefix + original_name(own, layers))
    assert len(header) == len(net.state_dict())
    config = found_in(header, name, denoiser, tmp_path / "net.safetensors", monkeypatch)
    assert header_of(on_meta("ControlNetModel", config)) == header_of(net)
    converted, unknown = convert("controlnet", {key.removeprefix(prefix): torch.ones(1) for key in header}, config)
    assert converted.keys() == net.state_dict().keys() and not unknown
    assert control_files.families_of_control(tmp_path, header) == (name,)


OTHERS = {
    "sdxl for sd1": ("sdxl", "sd1", {}, "cross_attention_dim is 2048, in family sd1 it is 768: of another family"),
    "sd2 for sd1": ("sd2", "sd1", {}, "cross_attention_dim is 1024, in family sd1 it is 768: of another family"),
    "flux for sd3": ("flux", "sd3", {}, "a ControlNet of family flux, expected a ControlNet of family sd3"),
    "qwen-image for flux": (
        *("qwen-image", "flux", {"num_layers": 5}),
        "a ControlNet of family qwen-image, expected a ControlNet of family flux",
    ),
    "flux for qwen-image": (
        *("flux", "qwen-image", {}),
        "a ControlNet of family flux, expected a ControlNet of family qwen-image",
    ),
    "another mask": (
        *("qwen-image", "qwen-image", {"num_layers": 1, "extra_condition_channels": 8}),
        "extra_condition_channels is 8, expected 0 or 4; others are not supported",
    ),
    "too many layers": (
        *("qwen-image", "qwen-image", {"num_layers": 61}),
        "num_layers is 61, expected 1 to 60 (as the model's)",
    ),
    "other channels": (
        *("z-image", "z-image", {"control_in_dim": 20}),
        "control_in_dim is 20, expected 16 or, for inpainting too, 33",
    ),
    "other refiners": (
        *("z-image", "z-image", {"n_refiner_layers": 3}),
        "n_refiner_layers is 3, expected 2 (as the model's)",
    ),
    "several kinds": ("flux", "flux", {"num_mode": 10}, "num_mode is 10, expected None; others are not supported"),
}


@pytest.mark.parametrize("of, name, changed, reason", OTHERS.values(), ids=OTHERS)
def test_a_file_that_does_not_fit_is_refused_by_name(
    of: str, name: str, changed: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = header_of(published(of, **changed)[0])
    with pytest.raises(ModelFilesRefused) as refused:
        found_in(header, name, published(name)[1], tmp_path / "net.safetensors", monkeypatch)
    assert reason in str(refused.value)


FOLDERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "for inpainting": ("sd3", {"extra_conditioning_channels": 1}, "extra_conditioning_channels is 1, expected 0"),
    "another size": ("sd3", {"num_attention_heads": 38}, "num_attention_heads times attention_head_dim is 2432"),
    "other text": ("sd3", {"joint_attention_dim": 2048}, "joint_attention_dim is 2048, expected 4096 (as the model's)"),
    "a small table": ("sd3", {"pos_embed_max_size": 96}, "pos_embed_max_size is 96, expected 192 (as the model's)"),
    "a huge table": ("sd3", {"pos_embed_max_size": 1024}, "pos_embed_max_size is 1024, expected 192"),
    "no layer": ("sd3", {"num_layers": 0}, "num_layers is 0, expected at least 1"),
    "images": ("flux", {"conditioning_embedding_channels": 16}, "conditioning_embedding_channels is 16, expected None"),
    "other axes": ("flux", {"axes_dims_rope": [56, 56, 16]}, "axes_dims_rope is [56, 56, 16], expected [16, 56, 56]"),
    "no layer of qwen-image": ("qwen-image", {"num_layers": 0}, "num_layers is 0, expected 1 to 60"),
    "another text width": ("qwen-image", {"joint_attention_dim": 768}, "joint_attention_dim is 768, expected 3584"),
    "no place": ("z-image", {"control_layers_places": []}, "control_layers_places is [], expected rising numbers from"),
    "no first place": (
        "z-image",
        {"control_layers_places": [2, 4]},
        "control_layers_places is [2, 4], expected rising",
    ),
    "a place twice": ("z-image", {"control_layers_places": [0, 2, 2]}, "control_layers_places is [0, 2, 2], expected"),
    "a place beyond": (
        "z-image",
        {"control_layers_places": [0, 30]},
        "is [0, 30], expected rising numbers from 0, all",
    ),
    "lists of places": ("z-image", {"control_layers_places": [[0]]}, "control_layers_places is [[0]], expected rising"),
    "no refined layer": (
        *("z-image", {"control_refiner_layers_places": None}),
        "control_refiner_layers_places is None, expected up to 2 rising numbers, all below 2",
    ),
    "a refined layer beyond": (
        *("z-image", {"control_refiner_layers_places": [1, 2]}),
        "control_refiner_layers_places is [1, 2], expected up to 2 rising numbers, all below 2",
    ),
    "another refiner": (
        *("z-image", {"add_control_noise_refiner": "other"}),
        "add_control_noise_refiner is 'other', expected None or 'control_layers' or 'control_noise_refiner'",
    ),
    "an order": (
        *("sd1", {"controlnet_conditioning_channel_order": "xyz"}),
        "controlnet_conditioning_channel_order is xyz, expected rgb or bgr",
    ),
}


@pytest.mark.parametrize("name, changed, reason", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_does_not_fit_is_refused_by_name(
    name: str, changed: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets, (net, denoiser) = NETS[name], published(name)
    config = {"_class_name": nets.model.class_name, **{k: v for k, v in net.config.items() if k[0] != "_"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(control_files, "_weights_of", _none)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert find_control(name, tmp_path, "float16", denoiser, 4).config.items() <= stored.items()
    (tmp_path / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(ModelFilesRefused) as refused:
        find_control(name, tmp_path, "float16", denoiser, 4)
    assert reason in str(refused.value)


@pytest.mark.parametrize("width", [[768], {}, {"a": 1}, "768", 768.5, True, None])
def test_any_width_in_a_folder_can_be_looked_at(tmp_path: Path, width: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel", "cross_attention_dim": width}))
    assert set(control_files.families_of_control(tmp_path)) <= set(NETS)


def _none(nets: ControlNets, path: Path, dtype: str) -> Any:
    yield from ()


@pytest.mark.parametrize("family", [FAMILIES[name] for name in NETS], ids=NETS)
def test_descriptions_equal_the_installed_classes(family: Family) -> None:
    nets = family.control_nets
    assert nets is not None
    parameters = inspect.signature(getattr(diffusers, nets.model.class_name).__init__).parameters
    assert nets.model.config.keys.keys() == parameters.keys() - {"self"}
    assert all(rule.kind in KINDS for rule in nets.model.config.keys.values())
    for key, value in nets.model.defaults.items():
        own = parameters[key].default
        assert value == (list(own) if isinstance(own, tuple) else own), key
    assert set(nets.equal) | nets.fixed.keys() | set(nets.alike) <= nets.model.defaults.keys()
    for class_name in nets.pipelines.values():
        assert "controlnet" in inspect.signature(getattr(diffusers, class_name).__init__).parameters
