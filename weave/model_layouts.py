"""What a model's folder must hold to be of its family: the classes, and the sizes that two components share.

Standard library only: the command line checks with it too. The classes themselves, and what is done with them, are in
weave/gpu_worker/families.py; a test holds the two tables together.
"""

from pathlib import Path
from typing import Any, NamedTuple

from weave.model_configs import CONFIG_RULES, SCHEDULER_RULES, TOKENIZER_RULES, check_values, read_object, shown
from weave.model_files import ModelFilesRefused
from weave.model_shapes import DEFAULTS, Sizes, flux, one_encoder, sd3, sdxl

_DIFFUSION = tuple(
    f"{name}Scheduler"
    for name in (
        "DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep", "PNDM"
    )
)  # fmt: skip
# Names under which a class of ours was known, or that stand for the same files.
_ALIASES = {
    "CLIPTokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "T5TokenizerFast": ("T5TokenizerFast", "T5Tokenizer"),
    # The decoder that such a file also has is left out.
    "T5EncoderModel": ("T5EncoderModel", "T5ForConditionalGeneration", "T5Model"),
}
_VOCABULARIES = {
    "CLIPTokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "T5TokenizerFast": (("tokenizer.json",), ("spiece.model",)),
}


class Layout(NamedTuple):
    """`pipelines`: those of model_index.json whose components are ours. `sizes` yields what components must share.

    `settings` are those entries of model_index.json that the pipeline's class takes.
    """

    pipelines: tuple[str, ...]
    components: dict[str, str]
    schedulers: tuple[str, ...]
    sizes: Sizes
    optional: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()


class Checked(NamedTuple):
    """A component's config by its part ("scheduler" too; none for tokenizers), and the pipeline's settings."""

    configs: dict[str, dict[str, Any]]
    settings: dict[str, bool]


def check_layout(family: str, model: Path) -> Checked:
    """Whether the folder is a model of this family, by its JSON files. Raises ModelFilesRefused."""
    layout = LAYOUTS[family]
    if not model.is_dir():
        raise ModelFilesRefused(f"{model.name}: not a folder in diffusers layout; convert it")
    settings = _check_index(layout, model)
    configs = {"scheduler": _check_scheduler(layout, model)}
    there = {part for part in layout.components if (model / part).is_dir()}
    optional = layout.optional if there & layout.optional else frozenset()
    for part, class_name in layout.components.items():
        if part not in there:
            if part not in layout.optional or part in optional:  # the optional ones come together, or not at all
                raise ModelFilesRefused(f"{part}: this family needs the folder, and the model has none")
        elif class_name in _VOCABULARIES:
            _check_tokenizer(model, part, class_name)
        else:
            configs[part] = _check_component(model, part, class_name)
    effective = {part: DEFAULTS.get(layout.components.get(part, ""), {}) | config for part, config in configs.items()}
    for expected in layout.sizes(effective):
        found = effective[expected.part][expected.key]
        # A list has one value for each block.
        if any(value != expected.value for value in (found if isinstance(found, list) else [found])):
            told = f"{expected.part}/config.json: {expected.key} is {shown(found)}, expected {shown(expected.value)}"
            raise ModelFilesRefused(f"{told} ({expected.source})")
    return Checked(configs, settings)


def _check_index(layout: Layout, model: Path) -> dict[str, bool]:
    if not (model / "model_index.json").exists():
        return {}
    index = read_object(model, "model_index.json")
    if (name := index.get("_class_name")) not in layout.pipelines:
        raise ModelFilesRefused(f"model_index.json: _class_name is {shown(name)}, expected {layout.pipelines[0]}")
    for part, class_name in layout.components.items():
        entry = index.get(part)
        if entry is None or entry == [None, None]:
            continue
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in _names(class_name):
            raise ModelFilesRefused(f"model_index.json: {part} is {shown(entry)}, expected {class_name}")
    settings = {key: index[key] for key in layout.settings if key in index}
    for key, value in settings.items():
        if not isinstance(value, bool):
            raise ModelFilesRefused(f"model_index.json: {key} is {shown(value)}, expected true or false")
    return settings


def _check_scheduler(layout: Layout, model: Path) -> dict[str, Any]:
    name = "scheduler/scheduler_config.json"
    config = check_values(name, read_object(model, name), SCHEDULER_RULES)
    if (class_name := config.get("_class_name")) not in layout.schedulers:
        allowed = ", ".join(layout.schedulers)
        raise ModelFilesRefused(f"{name}: _class_name is {shown(class_name)}, expected one of {allowed}")
    return config


def _check_component(model: Path, part: str, class_name: str) -> dict[str, Any]:
    name = f"{part}/config.json"
    found = read_object(model, name)
    architectures = found.get("architectures")
    told = [found.get("_class_name"), *(architectures if isinstance(architectures, list) else [architectures])]
    for other in told:
        if other is not None and other not in _names(class_name):
            key = "_class_name" if other == found.get("_class_name") else "architectures"
            raise ModelFilesRefused(f"{name}: {key} is {shown(other)}, expected {class_name}")
    return check_values(name, found, CONFIG_RULES[class_name])


def _check_tokenizer(model: Path, part: str, class_name: str) -> None:
    for file, allowed in TOKENIZER_RULES.items():
        if (model / part / file).exists():
            config = check_values(f"{part}/{file}", read_object(model, f"{part}/{file}"), allowed)
            found = config.get("tokenizer_class") or class_name
            if found not in _names(class_name):
                raise ModelFilesRefused(f"{part}/{file}: tokenizer_class is {shown(found)}, expected {class_name}")
            if config.get("backend") not in (None, "tokenizers"):
                raise ModelFilesRefused(f"{part}/{file}: backend is {shown(config['backend'])}, expected tokenizers")
    choices = _VOCABULARIES[class_name]
    if not any(all((model / part / file).is_file() for file in files) for files in choices):
        # Without these transformers makes a tokenizer that knows no word.
        raise ModelFilesRefused(f"{part}: has neither {' nor '.join(' and '.join(files) for files in choices)}")


def _names(class_name: str) -> tuple[str, ...]:
    return _ALIASES.get(class_name, (class_name,))


_ONE_ENCODER = {
    "tokenizer": "CLIPTokenizer",
    "text_encoder": "CLIPTextModel",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
}


def _siblings(name: str, *more: str) -> tuple[str, ...]:
    """Pipelines of the same components, for other tasks."""
    return (f"{name}Pipeline", f"{name}Img2ImgPipeline", f"{name}InpaintPipeline", *more)


LAYOUTS: dict[str, Layout] = {
    "sd1": Layout(_siblings("StableDiffusion"), _ONE_ENCODER, _DIFFUSION, one_encoder("sd2", 1024)),
    "sd2": Layout(_siblings("StableDiffusion"), _ONE_ENCODER, _DIFFUSION, one_encoder("sd1", 768)),
    "sdxl": Layout(
        _siblings("StableDiffusionXL"),
        {
            "tokenizer": "CLIPTokenizer",
            "tokenizer_2": "CLIPTokenizer",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
        },
        _DIFFUSION,
        sdxl,
        settings=frozenset({"force_zeros_for_empty_prompt"}),
    ),
    "sd3": Layout(
        _siblings("StableDiffusion3"),
        {
            "tokenizer": "CLIPTokenizer",
            "tokenizer_2": "CLIPTokenizer",
            "tokenizer_3": "T5TokenizerFast",
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
            "transformer": "SD3Transformer2DModel",
            "vae": "AutoencoderKL",
        },
        ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
        sd3,
        optional=frozenset({"tokenizer_3", "text_encoder_3"}),
    ),
    "flux": Layout(
        _siblings("Flux", "FluxKontextPipeline"),
        {
            "tokenizer": "CLIPTokenizer",
            "tokenizer_2": "T5TokenizerFast",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
            "transformer": "FluxTransformer2DModel",
            "vae": "AutoencoderKL",
        },
        ("FlowMatchEulerDiscreteScheduler",),
        flux,
    ),
}
