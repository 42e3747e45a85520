"""A model's files become a pipeline: every tensor where it belongs, all of one dtype, and no choice left to a file.

The libraries' from_pretrained reads more than weights: an adapter's config names another model, an index names other
files, a config names kernels and quantizers. So the configs are read by weave/models/layouts.py and the weights here,
and the libraries get classes, checked values and tensors.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from weave.gpu_worker.classes import component_class, pipeline_class
from weave.gpu_worker.device import is_out_of_memory
from weave.gpu_worker.schedulers import check_schedulers
from weave.models.components import CLIP_TOKENIZER, Component, ModelClass, TokenizerClass
from weave.models.configs import read_object, shown
from weave.models.families import FAMILIES
from weave.models.files import ModelFilesRefused
from weave.models.layouts import check_layout

Tensors = dict[str, torch.Tensor]

_SHOWN_KEYS = 5


def load_pipeline(name: str, path: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The pipeline of a model in diffusers layout, on `device`. Raises ModelFilesRefused."""
    family = FAMILIES[name]
    configs, settings = check_layout(name, path)
    parts = {part: component for part, component in family.components.items() if (path / part).is_dir()}
    loaded: dict[str, Any] = dict.fromkeys(family.components)
    for part, component in parts.items():
        if isinstance(component, TokenizerClass):
            loaded[part] = _load_tokenizer(path, part, component)
        else:
            loaded[part] = _load_model(path, part, component, configs[part], dtype, mapped=device.type != "cpu")
    _check_tokenizers(parts, loaded)
    scheduler_class = getattr(diffusers, configs["scheduler"]["_class_name"])
    with _refusing("scheduler"):
        scheduler = scheduler_class.from_config(configs["scheduler"])
    pipeline = pipeline_class(family)(scheduler=scheduler, **loaded, **family.fixed, **settings)
    with _refusing("scheduler"):
        check_schedulers(pipeline, family)
    # tqdm makes a multiprocessing lock on first use, which lock-down refuses.
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@contextlib.contextmanager
def _refusing(part: str) -> Iterator[None]:
    """Whatever a class says about a config or a file is the model's fault, but for a lack of memory."""
    try:
        yield
    except ModelFilesRefused:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelFilesRefused(f"{part}: {type(error).__name__}: {str(error)[:500]}") from error


def _load_tokenizer(path: Path, part: str, component: TokenizerClass) -> Any:
    with _refusing(part):
        return component_class(component).from_pretrained(str(path / part), local_files_only=True)


def _check_tokenizers(parts: Mapping[str, Component], loaded: Mapping[str, Any]) -> None:
    tokenizers = {part: loaded[part] for part, component in parts.items() if isinstance(component, TokenizerClass)}
    for part, tokenizer in tokenizers.items():
        with _refusing(part):
            _fit_tokenizer(part, tokenizer, loaded[part.replace("tokenizer", "text_encoder")].config)
    _check_lengths({part: tokenizer for part, tokenizer in tokenizers.items() if parts[part] is CLIP_TOKENIZER})


def _fit_tokenizer(part: str, tokenizer: Any, config: Any) -> None:
    """Every token must have its row in the encoder's table, and every prompt its place."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < config.vocab_size:
        raise ModelFilesRefused(f"{part}: its largest token is {largest}, the encoder's vocab_size {config.vocab_size}")
    if tokenizer.pad_token_id is None:
        raise ModelFilesRefused(f"{part}: it has no pad_token, and prompts are filled up with it")
    for key in ("eos_token_id", "layer_norm_eps") if config.model_type == "clip_text_model" else ():
        if not isinstance(getattr(config, key), int | float):
            encoder = part.replace("tokenizer", "text_encoder")
            raise ModelFilesRefused(f"{encoder}/config.json: {key} is {shown(getattr(config, key))}, expected a number")
    places = getattr(config, "max_position_embeddings", None)
    if places is not None and tokenizer.model_max_length > places:
        tokenizer.model_max_length = places  # its config may lack it


def _check_lengths(tokenizers: Mapping[str, Any]) -> None:
    """The pipelines put the CLIP encoders' words side by side, so all must take as many."""
    lengths = {part: tokenizer.model_max_length for part, tokenizer in tokenizers.items()}
    for part, length in lengths.items():
        first = next(iter(lengths))
        if length != lengths[first]:
            raise ModelFilesRefused(f"{part}: it takes {length} tokens, expected {lengths[first]} (as {first})")


def _load_model(
    path: Path, part: str, component: ModelClass, config: dict[str, Any], dtype: torch.dtype, *, mapped: bool
) -> Any:
    of_diffusers, model_class = component.library == "diffusers", component_class(component)
    with _refusing(part):
        tensors = _read_tensors(path, part, "diffusion_pytorch_model" if of_diffusers else "model")
        if not mapped:
            # What is not cast would stay in the mapped file, where a change of the file changes the model, and where
            # no address is aligned: that alone can change a picture.
            left = {dtype, torch.float32} if model_class._keep_in_fp32_modules else {dtype}
            tensors = {key: tensor.clone() if tensor.dtype in left else tensor for key, tensor in tensors.items()}
        load = _diffusers_model if of_diffusers else _transformers_model
        model = load(part, component, config, tensors, dtype)
    _check_complete(part, model, dtype)
    return model.eval()


def _diffusers_model(
    part: str, component: ModelClass, config: dict[str, Any], tensors: Tensors, dtype: torch.dtype
) -> Any:
    model_class = component_class(component)
    with _parameters_on_meta():
        model = model_class(**config)
    model._fix_state_dict_keys_on_load(tensors)  # the attention of older VAEs
    expected = model.state_dict()
    wrong = {key for key in expected.keys() & tensors.keys() if expected[key].shape != tensors[key].shape}
    _refuse_keys(part, "tensors of another shape", wrong)
    _refuse_keys(part, "missing tensors", expected.keys() - tensors.keys())
    _refuse_keys(part, "unexpected tensors", tensors.keys() - expected.keys())
    kept = model_class._keep_in_fp32_modules or []

    def target(key: str) -> torch.dtype:
        return torch.float32 if any(name in key.split(".") for name in kept) else dtype

    model.load_state_dict({key: _cast(tensor, target(key)) for key, tensor in tensors.items()}, assign=True)
    for module_name, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):  # those that no file holds
            setattr(module, name, _cast(buffer, target(f"{module_name}.{name}")))
    return model


def _transformers_model(
    part: str, component: ModelClass, config: dict[str, Any], tensors: Tensors, dtype: torch.dtype
) -> Any:
    model_class = component_class(component)
    model, told = model_class.from_pretrained(
        None,
        config=model_class.config_class(**config),
        state_dict=tensors,
        dtype=dtype,
        attn_implementation="sdpa",
        # Else it raises without a name.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        local_files_only=True,
    )
    _refuse_keys(part, "tensors of another shape", {key for key, *_ in told["mismatched_keys"]})
    _refuse_keys(part, "missing tensors", told["missing_keys"])
    _refuse_keys(part, "unexpected tensors", set(told["unexpected_keys"]) - set(component.unused_tensors))
    return model


def _refuse_keys(part: str, fault: str, keys: Iterable[str]) -> None:
    if found := sorted(keys):
        first = ", ".join(shown(key) for key in found[:_SHOWN_KEYS])
        raise ModelFilesRefused(f"{part}: {len(found)} {fault}: {first}{', ...' * (len(found) > _SHOWN_KEYS)}")


def _check_complete(part: str, model: torch.nn.Module, dtype: torch.dtype) -> None:
    """The libraries promise this; a pipeline that breaks it draws noise, or fails at its first picture."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        kept = tensor.dtype == torch.float32 and getattr(model, "_keep_in_fp32_modules", None)
        if tensor.is_meta or (tensor.is_floating_point() and tensor.dtype != dtype and not kept):
            raise ModelFilesRefused(f"{part}: {name} was not loaded as {dtype}")


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """A module made here has parameters without memory. Its buffers are real: no file holds some of them."""
    register = torch.nn.Module.register_parameter

    def on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None:  # what it requires is kept: on the CPU, kernels are chosen by it
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _read_tensors(path: Path, part: str, stem: str) -> Tensors:
    """Every tensor of a component, mapped from its file or files."""
    tensors: Tensors = {}
    for name in _weight_files(path, part, stem):
        try:
            with safe_open(path / part / name, framework="pt") as file:
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise ModelFilesRefused(f"{part}/{name}: {error}") from None
        _refuse_keys(part, "tensors in two files", found.keys() & tensors.keys())
        tensors |= found
    whole = {key for key, tensor in tensors.items() if not tensor.is_floating_point() and not key.endswith("_ids")}
    _refuse_keys(part, "tensors not of floating-point numbers", whole)
    return tensors


def _weight_files(path: Path, part: str, stem: str) -> list[str]:
    index = f"{stem}.safetensors.index.json"
    if (path / part / f"{stem}.safetensors").exists() or not (path / part / index).exists():
        return [f"{stem}.safetensors"]
    files = read_object(path, f"{part}/{index}").get("weight_map")
    names: list[Any] = list(files.values()) if isinstance(files, Mapping) else [None]
    if not all(isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") for name in names):
        raise ModelFilesRefused(f"{part}/{index}: weight_map must give a .safetensors file of this folder for each key")
    return sorted(set(names))
