"""A model's files become a pipeline: every tensor in its place, all of one dtype, and nothing chosen by a file.

The libraries' from_pretrained reads more than weights: an adapter's config names another model, an index names other
files, a config names kernels and quantizers. So weave/models/ chooses the files and reads the configs, tensors.py reads
the weights; the libraries get classes, checked values and tensors.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from weave.config.schema import Form
from weave.gpu_worker.classes import component_class, pipeline_class
from weave.gpu_worker.converters import Tensors
from weave.gpu_worker.device import is_out_of_memory
from weave.gpu_worker.kept import StandIns
from weave.gpu_worker.processors import check_marks, processor_of
from weave.gpu_worker.schedulers import check_own_scheduler
from weave.gpu_worker.tensors import read_tensors, read_value, refuse_keys
from weave.models.assets import Source, Weights, find_assets
from weave.models.components import CLIP_TOKENIZER, Component, ModelClass, ProcessorClass, TokenizerClass
from weave.models.families import FAMILIES
from weave.models.files import ModelFilesRefused
from weave.models.kept import may_keep, stays

_VELOCITY = 0.09


def load_pipeline(
    name: str,
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    pins: Mapping[str, str] | None = None,
    take: Callable[[Any], None] | None = None,
    form: Form = "kept",
) -> Any:
    """The pipeline of a model, on `device`, or offloaded by `take` from the mapped files. `name` is its family; `pins`
    are digests of its files, as for Source.as_pinned(); `form` is how quantised weights are held. Raises
    ModelFilesRefused."""
    if pins:
        # Its reasons are clearer than that a digest differs. It is repeated below, where the files cannot change.
        find_assets(name, source, str(dtype).removeprefix("torch."))
    with source.as_pinned(pins or {}):
        pipeline = _load_pipeline(name, source, dtype, form, mapped=take is not None or device.type != "cpu")
        if take is None:
            return pipeline.to(device)
        take(pipeline)
        return pipeline


def _load_pipeline(name: str, source: Source, dtype: torch.dtype, form: Form, *, mapped: bool) -> Any:
    family = FAMILIES[name]
    assets = find_assets(name, source, str(dtype).removeprefix("torch."))
    configs, settings = assets.checked
    for tensor, stored in assets.values.items():
        configs[stored.part][stored.key] = read_value(source.path, tensor, stored)
    loaded: dict[str, Any] = dict.fromkeys(family.components)
    for part, folder in assets.tokenizers.items():
        component = family.components[part]
        tokenizer_class = component.tokenizer if isinstance(component, ProcessorClass) else component
        loaded[part] = _load_tokenizer(folder, part, tokenizer_class, family.prompt_template, assets.padding.get(part))
        if isinstance(component, ProcessorClass):
            with _errors_refuse(part):
                loaded[part] = processor_of(component, configs[part], loaded[part])
    for part, component in family.components.items():
        if isinstance(component, ModelClass) and part in assets.weights:
            weights = assets.weights[part]
            form_of_part = form if may_keep(part, component) else None
            loaded[part] = load_model(weights, part, component, configs[part], dtype, mapped=mapped, form=form_of_part)
    _check_tokenizers({part: family.components[part] for part in assets.tokenizers}, loaded)
    scheduler_class = getattr(diffusers, configs["scheduler"]["_class_name"])
    with _errors_refuse("scheduler"):
        if assets.velocity_bias and predicts_velocity(loaded["unet"].get_parameter(assets.velocity_bias)):
            configs["scheduler"]["prediction_type"] = "v_prediction"
        scheduler = scheduler_class.from_config(configs["scheduler"])
    pipeline = pipeline_class(family)(scheduler=scheduler, **loaded, **family.fixed, **settings)
    with _errors_refuse("scheduler"):
        check_own_scheduler(pipeline.scheduler)
    # tqdm creates a multiprocessing lock at its first use, which the sandbox forbids.
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def predicts_velocity(bias: torch.Tensor) -> bool:
    """Whether this parameter, SingleFile.velocity_bias, is of a model that predicts velocity, not noise."""
    return bool(bias.float().std(correction=0) > _VELOCITY)


@contextlib.contextmanager
def _errors_refuse(part: str) -> Iterator[None]:
    """Any exception of a library refuses the model, except running out of memory."""
    try:
        yield
    except ModelFilesRefused:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelFilesRefused(f"{part}: {type(error).__name__}: {str(error)[:500]}") from error


def _load_tokenizer(folder: Path, part: str, component: Component, template: str, padding: str | None) -> Any:
    with _errors_refuse(part):
        more = {} if padding is None else {"pad_token": padding}
        tokenizer_class = component_class(component)
        tokenizer = tokenizer_class.from_pretrained(str(folder), local_files_only=True, **more)
    tokenizer.model_input_names = tokenizer_class.model_input_names  # some pipelines count on the attention mask
    # Some pipelines call this for each prompt. It would run the template in the files, which is code in Jinja.
    tokenizer.apply_chat_template = lambda messages, **options: template.format(messages[0]["content"])
    return tokenizer


def _check_tokenizers(parts: Mapping[str, Component], loaded: Mapping[str, Any]) -> None:
    tokenizers = {part: loaded[part] for part, component in parts.items() if isinstance(component, TokenizerClass)}
    for part, tokenizer in tokenizers.items():
        with _errors_refuse(part):
            encoder = loaded[part.replace("tokenizer", "text_encoder")]
            _fit_to_encoder(part, tokenizer, encoder.config.get_text_config())
    for part, component in parts.items():
        if isinstance(component, ProcessorClass):
            with _errors_refuse(part):
                config = loaded["text_encoder"].config
                _fit_to_encoder(part, loaded[part].tokenizer, config.get_text_config())
                check_marks(part, loaded[part], config)
    _check_clip_lengths({part: tokenizer for part, tokenizer in tokenizers.items() if parts[part] is CLIP_TOKENIZER})


def _fit_to_encoder(part: str, tokenizer: Any, config: Any) -> None:
    """Every token must have its row in the encoder's table. Limits prompts to the encoder's positions."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < config.vocab_size:
        raise ModelFilesRefused(f"{part}: its largest token is {largest}, the encoder's vocab_size {config.vocab_size}")
    if tokenizer.pad_token_id is None:
        raise ModelFilesRefused(f"{part}: it has no pad_token, which prompts are padded with")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and tokenizer.model_max_length > positions:
        tokenizer.model_max_length = positions  # tokenizer_config.json may lack it


def _check_clip_lengths(tokenizers: Mapping[str, Any]) -> None:
    """The pipelines concatenate the CLIP encoders' embeddings token by token, so all lengths must be equal."""
    lengths = {part: tokenizer.model_max_length for part, tokenizer in tokenizers.items()}
    for part, length in lengths.items():
        first = next(iter(lengths))
        if length != lengths[first]:
            raise ModelFilesRefused(f"{part}: it takes {length} tokens, expected {lengths[first]} (as {first})")


def load_model(
    weights: Weights,
    part: str,
    component: ModelClass,
    config: dict[str, Any],
    dtype: torch.dtype,
    *,
    mapped: bool,
    form: Form | None = None,
) -> Any:
    """A component, on the CPU. Its weights may stay in the `mapped` files. `form` is for a component that may_keep().
    Raises ModelFilesRefused."""
    is_diffusers, model_class = component.library == "diffusers", component_class(component)
    with _errors_refuse(part):
        tensors, matrices = read_tensors(part, weights, config, dtype, keep=form is not None)
        kept = {name: matrix for name, matrix in matrices.items() if form != "full" and stays(component, name)}
        for name in matrices.keys() - kept.keys():
            stays_wide = set(component.kept_in_float32) & set(name.split("."))
            tensors[name] = matrices[name].full(torch.float32 if stays_wide else dtype)
        if not mapped:
            kept = {name: matrix.clone() for name, matrix in kept.items()}
        if not mapped:
            # A tensor that is not cast would stay in the mapped file: a change of the file would change the model, and
            # its address is not aligned, which alone can change pixels.
            not_cast = {dtype, torch.float32} if model_class._keep_in_fp32_modules else {dtype}
            tensors = {key: tensor.clone() if tensor.dtype in not_cast else tensor for key, tensor in tensors.items()}
        load = _load_with_diffusers if is_diffusers else _load_with_transformers
        stand_ins = StandIns(kept, dtype)
        model = load(part, component, config, tensors | stand_ins.tensors, dtype)
        left = stand_ins.replace(model, in_fp8=form == "fp8_matmul") - set(component.unused_tensors)
        refuse_keys(part, "quantised tensors of no layer", left)
    _check_complete(part, model, dtype)
    return model.eval()


def _load_with_diffusers(
    part: str, component: ModelClass, config: dict[str, Any], tensors: Tensors, dtype: torch.dtype
) -> Any:
    model_class = component_class(component)
    with _parameters_on_meta():
        model = model_class(**config)
    model._fix_state_dict_keys_on_load(tensors)  # renames the attention keys of older VAEs
    expected = model.state_dict()
    wrong = {key for key in expected.keys() & tensors.keys() if expected[key].shape != tensors[key].shape}
    refuse_keys(part, "tensors of another shape", wrong)
    refuse_keys(part, "missing tensors", expected.keys() - tensors.keys())
    refuse_keys(part, "unexpected tensors", tensors.keys() - expected.keys())
    kept = model_class._keep_in_fp32_modules or []

    def target(key: str) -> torch.dtype:
        return torch.float32 if any(name in key.split(".") for name in kept) else dtype

    model.load_state_dict({key: _cast(tensor, target(key)) for key, tensor in tensors.items()}, assign=True)
    for module_name, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):  # some are in no file
            setattr(module, name, _cast(buffer, target(f"{module_name}.{name}")))
    return model


def _load_with_transformers(
    part: str, component: ModelClass, config: dict[str, Any], tensors: Tensors, dtype: torch.dtype
) -> Any:
    model_class = component_class(component)
    model, report = model_class.from_pretrained(
        None,
        config=model_class.config_class(**config),
        state_dict=tensors,
        dtype=dtype,
        attn_implementation="sdpa",
        # Otherwise it raises an error that names no tensor.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        local_files_only=True,
    )
    refuse_keys(part, "tensors of another shape", {key for key, *_ in report["mismatched_keys"]})
    refuse_keys(part, "missing tensors", report["missing_keys"])
    refuse_keys(part, "unexpected tensors", set(report["unexpected_keys"]) - set(component.unused_tensors))
    return model


def _check_complete(part: str, model: torch.nn.Module, dtype: torch.dtype) -> None:
    """The libraries should ensure this. Otherwise the pipeline generates noise, or fails at its first image."""
    in_files = model.state_dict().keys()  # transformers does not cast what a class computes, such as Qwen's rotations
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        kept = tensor.dtype == torch.float32 and getattr(model, "_keep_in_fp32_modules", None)
        is_cast = name in in_files and tensor.is_floating_point() and not kept
        if tensor.is_meta or (is_cast and tensor.dtype != dtype):
            raise ModelFilesRefused(f"{part}: {name} was not loaded as {dtype}")


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules created in this context have parameters without memory. Buffers are real: some are in no file."""
    register = torch.nn.Module.register_parameter

    def on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None:  # requires_grad is kept: on the CPU it selects kernels
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
