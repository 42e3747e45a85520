"""The files of a ControlNet: a folder in diffusers layout or one .safetensors file, checked before a library reads
them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weave.models.assets import Source, Weights, read_header
from weave.models.configs import check_values, read_object, shown
from weave.models.control_nets import ControlNets
from weave.models.families import FAMILIES
from weave.models.faults import Checks, apart, fault_of, refuse_first
from weave.models.files import Header, ModelFilesRefused, check_safetensors_header, find_file
from weave.models.single_files import tensors_of
from weave.models.weights import choose_weights

_CONFIG = "config.json"


class ControlFiles(NamedTuple):
    """A ControlNet's config for its class, and where its tensors are."""

    config: dict[str, Any]
    weights: Weights


def find_control(family: str, path: Path, dtype: str, denoiser: Mapping[str, Any], vae_blocks: int) -> ControlFiles:
    """The files of a ControlNet for a model of `family` whose denoiser has this config. `vae_blocks` is the number of
    blocks in its VAE. Raises ModelFilesRefused."""
    nets = _nets(family)
    found, config = refuse_first(_control_checks(family, path, dtype))
    model = {key: _plain(value) for key, value in denoiser.items()} | {"vae_blocks": vae_blocks}
    if path.is_file():
        config = {key: model[key] for key in nets.model.config.keys if key in model} | config
        config |= nets.placed(config, model)
    for fault in misfits(nets, {**nets.model.defaults, **config}, model):
        raise ModelFilesRefused(f"{path.name}: {fault}: for another family or size of model")
    return ControlFiles(config, found)


def check_files(path: Path, family: str, sha256: Mapping[str, str]) -> Checks[Weights | None]:
    """Every fault that shows without a model; returns where the tensors are."""
    found = yield from apart(_control_checks(family, path, "auto"))
    for name, digest in sha256.items():
        yield from fault_of(Source(path).check_pin, name, digest)
    return found and found[0]


def families_of_control(path: Path, header: Header | None = None) -> tuple[str, ...]:
    """The families that a ControlNet is for; none if `path` is not a ControlNet. `header` is that of a single file."""
    config = {} if header is not None else read_object(path, _CONFIG)
    found = []
    for name, family in FAMILIES.items():
        nets = family.control_nets
        if nets is None:
            continue
        if header is None:
            fits = config.get("_class_name") == nets.model.class_name
        else:
            fits = _is_of(nets, header)
            config = nets.derive(_plain_names(nets, header)) if fits else {}
        if fits and (nets.width is None or _widths_fit(nets, config)):
            found.append(name)
    return tuple(found)


def _widths_fit(nets: ControlNets, config: Mapping[str, Any]) -> bool:
    """Small ControlNets of SDXL take no text. A width that no published model has does not tell sd1 from sd2."""
    width = config.get("cross_attention_dim")
    same_kind = config.get("addition_embed_type") == nets.added_embedding
    return same_kind and (width == nets.width or width not in list(_published()))  # it may be any JSON value


def _published() -> set[int]:
    nets = (family.control_nets for family in FAMILIES.values())
    return {it.width for it in nets if it is not None and it.width is not None}


def _control_checks(family: str, path: Path, dtype: str) -> Checks[tuple[Weights, dict[str, Any]]]:
    """The tensors, and what the files say of the config."""
    nets = _nets(family)
    if path.is_dir():
        config = yield from _config_of(nets, path)
        weights = yield from _weights_of(nets, path, dtype)
    else:
        header = read_header(path)
        if not _is_of(nets, header):
            raise ModelFilesRefused(f"{path.name}: {_instead(header, path)}, expected a ControlNet of family {family}")
        config = yield from config_of_file(nets, path.name, header)
        weights = Weights((path,), nets.file, tensors_of(nets.file, header, alone=True))
    for key, value in nets.fixed.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if (own := config.get(key, nets.model.defaults[key])) not in allowed:
            wanted = " or ".join(map(shown, allowed))
            yield f"{path.name}: {key} is {shown(own)}, expected {wanted}; others are not supported"
    width = config.get("cross_attention_dim")
    if nets.width is not None and width != nets.width and width in _published():
        raise ModelFilesRefused(
            f"{path.name}: cross_attention_dim is {width}, in family {family} it is {nets.width}: of another family"
        )
    return weights, config


def _instead(header: Header, path: Path) -> str:
    """What a file is, if not a ControlNet of the expected family."""
    others = families_of_control(path, header)
    return f"a ControlNet of family {' or '.join(others)}" if others else "not a ControlNet that is known"


def _config_of(nets: ControlNets, path: Path) -> Checks[dict[str, Any]]:
    found = read_object(path, _CONFIG)
    if (name := found.get("_class_name")) not in (None, nets.model.class_name):
        raise ModelFilesRefused(f"{_CONFIG}: _class_name is {shown(name)}, expected {nets.model.class_name}")
    return (yield from check_values(_CONFIG, found, nets.model.config)) or {}


def config_of_file(nets: ControlNets, name: str, header: Header) -> Checks[dict[str, Any]]:
    """What the tensors of the single file `name` say of its config."""
    return (yield from check_values(name, nets.derive(_plain_names(nets, header)), nets.model.config)) or {}


def _weights_of(nets: ControlNets, path: Path, dtype: str) -> Checks[Weights]:
    files = choose_weights(path, "", nets.model.weights, dtype)
    for file in files:
        yield from fault_of(lambda file: check_safetensors_header(find_file(path, file), file), file)
    return Weights(tuple(path / file for file in files))


def _nets(family: str) -> ControlNets:
    nets = FAMILIES[family].control_nets
    if nets is None:
        raise ModelFilesRefused(f"ControlNets are not supported in family {family}")
    return nets


def _is_of(nets: ControlNets, header: Header) -> bool:
    names = _plain_names(nets, header)
    return all(any(name.startswith(mark) for name in names) for mark in nets.marks)


def _plain_names(nets: ControlNets, header: Header) -> Header:
    return {name: header[stored] for name, stored in tensors_of(nets.file, header, alone=True).items()}


def misfits(nets: ControlNets, config: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[str]:
    """Why a ControlNet with this config does not fit the model. The config has a value for each key compared."""
    for key in nets.equal:
        if not _same(config[key], model[key]):
            yield f"{key} is {shown(config[key])}, expected {shown(model[key])} (as the model's)"
    yield from nets.others(config, model)


def _same(own: Any, models: Any) -> bool:
    """A UNet may have one value a block where the ControlNet has one for all."""
    if isinstance(models, list) and not isinstance(own, list):
        return all(value == own for value in models)
    return bool(own == models)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
