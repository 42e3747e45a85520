"""Checks that a model's folder belongs to its family, by its JSON files: classes, config values and shared sizes."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weave.models.components import TOKENIZER_RULES, Component, ModelClass, ProcessorClass, TokenizerClass
from weave.models.configs import Rules, check_values, read_object, rules, shown
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.models.faults import Checks, apart, fault_of
from weave.models.files import ModelFilesRefused, find_file
from weave.models.schedulers import SCHEDULER_RULES, misfit, name_of
from weave.models.sizes import SETTINGS

# Tokenizers open these besides the files in TOKENIZER_RULES, if they exist.
_VOCABULARIES = (
    *("added_tokens.json", "tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "chat_template.jinja"),
)
# They open every file in this folder. No family needs it.
_TEMPLATES = "additional_chat_templates"
# An image processor's config is in the first, as an object, or in the second.
_WHOLE_PROCESSOR, _PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
_INNER = "image_processor"
# No file of these is worth a note: what git, the Hub's tools and people put beside a model.
_BESIDE = {".md", ".txt", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".pdf", ""}


class Checked(NamedTuple):
    """Each component's config by its folder, including "scheduler" but no tokenizers, and the pipeline's settings. That
    of a processor is its image processor's."""

    configs: dict[str, dict[str, Any]]
    settings: dict[str, Any]


def unread_files(name: str, model: Path, weights: Iterable[Path]) -> list[str]:
    """The files of a model's folder that are never opened, relative to it, but for documentation and images. `weights`
    are those that are."""
    opened = {SETTINGS, "scheduler/scheduler_config.json"}
    opened |= {str(path.relative_to(model)) for path in weights if path.is_relative_to(model)}
    for part, component in FAMILIES[name].components.items():
        if isinstance(component, ModelClass):
            opened.add(f"{part}/config.json")
            continue
        opened |= {f"{part}/{file}" for file in (*TOKENIZER_RULES, *_VOCABULARIES)}
        if isinstance(component, ProcessorClass):
            opened |= {f"{part}/{file}" for file in (_WHOLE_PROCESSOR, _PREPROCESSOR)}
    found = []
    for folder, folders, files in os.walk(model):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        names = (Path(folder, file).relative_to(model) for file in sorted(files) if not file.startswith("."))
        found += [str(path) for path in names if path.suffix.lower() not in _BESIDE and str(path) not in opened]
    return found


def layout_checks(name: str, model: Path) -> Checks[Checked]:
    """That the folder `model` is a model of the family `name`. Does not look at weights."""
    if not model.exists():
        raise ModelFilesRefused(f"{model.name}: no such model folder")
    if not model.is_dir():
        raise ModelFilesRefused(f"{model.name}: not a folder in diffusers layout")
    return (yield from folder_checks(name, model, part_folders(name, model), {}))


def part_folders(name: str, model: Path) -> dict[str, Path]:
    """By component, its folder in `model`, if there is one."""
    return {part: model / part for part in FAMILIES[name].components if (model / part).is_dir()}


def folder_checks(
    name: str, base: Path, folders: Mapping[str, Path], derived: Mapping[str, dict[str, Any]]
) -> Checks[Checked]:
    """As layout_checks(), of components in `folders`. `base` has the scheduler's folder, and maybe model_index.json.
    `derived` has values that replace those of a component's config, or the scheduler's."""
    family = FAMILIES[name]
    settings = yield from apart(_check_index(family, base))
    found = {"scheduler": (yield from apart(_check_scheduler(family, base, derived.get("scheduler", {}))))}
    parts = dict(_parts(family, folders))
    for part, component in parts.items():
        if part not in folders:
            yield f"{part}: this family needs the folder, and the model does not have it"
        elif isinstance(component, ModelClass):
            found[part] = yield from apart(_check_component(folders[part], component, derived.get(part, {})))
        else:
            tokenizer = component.tokenizer if isinstance(component, ProcessorClass) else component
            yield from apart(_check_tokenizer(folders[part].parent, folders[part].name, tokenizer))
            if isinstance(component, ProcessorClass):
                found[part] = yield from apart(_check_processor(folders[part], component))
    configs = {part: config for part, config in found.items() if config is not None}
    sized = {part: component for part, component in parts.items() if not isinstance(component, TokenizerClass)}
    if sized.keys() <= configs.keys():
        yield from _check_sizes(family, sized, configs, settings or {})
    return Checked(configs, settings or {})


def _parts(family: Family, folders: Mapping[str, Path]) -> Iterator[tuple[str, Component]]:
    """The components that the model must have: of the optional ones all, or none."""
    optional = bool(folders.keys() & family.optional)
    for part, component in family.components.items():
        if optional or part not in family.optional:
            yield part, component


def _check_sizes(
    family: Family,
    sized: Mapping[str, ModelClass | ProcessorClass],
    configs: Mapping[str, dict[str, Any]],
    settings: dict[str, Any],
) -> Iterator[str]:
    effective = {part: {**component.defaults, **configs[part]} for part, component in sized.items()}
    for expected in family.sizes(effective | {SETTINGS: settings}):
        if isinstance(expected, str):
            yield expected
            continue
        found = effective[expected.part][expected.key]
        # A list has one value per block.
        if any(value != expected.value for value in (found if isinstance(found, list) else [found])):
            detail = f"{expected.key} is {shown(found)}, expected {shown(expected.value)} ({expected.source})"
            yield f"{expected.part}/config.json: {detail}"


def _check_index(family: Family, model: Path) -> Checks[dict[str, Any] | None]:
    if not (model / SETTINGS).exists():
        return {}
    index = read_object(model, SETTINGS)
    if (name := index.get("_class_name")) not in family.all_pipelines:
        yield f"{SETTINGS}: _class_name is {shown(name)}, expected {family.pipeline}"
    for part, component in family.components.items():
        entry = index.get(part)
        if entry is None or entry == [None, None]:
            continue
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in _names(component):
            yield f"{SETTINGS}: {part} is {shown(entry)}, expected {component.class_name}"
    settings = {key: value for key, value in index.items() if key in family.settings.keys}
    return (yield from check_values(SETTINGS, settings, family.settings))


def _check_scheduler(family: Family, model: Path, derived: dict[str, Any]) -> Checks[dict[str, Any] | None]:
    name = "scheduler/scheduler_config.json"
    config = yield from check_values(name, read_object(model, name) | derived, SCHEDULER_RULES)
    if config is None:
        return None
    class_name = family.own_scheduler(config.get("_class_name"))
    if class_name is None:
        known = ", ".join((*family.own_schedulers, *family.related_schedulers))
        yield f"{name}: _class_name is {shown(config.get('_class_name'))}, expected one of {known}"
    elif fault := misfit(name_of(class_name), class_name, config):
        yield f"{name}: {fault}"
    return config | {"_class_name": class_name}


def _check_component(folder: Path, component: ModelClass, derived: dict[str, Any]) -> Checks[dict[str, Any] | None]:
    name = f"{folder.name}/config.json"
    found = read_object(folder.parent, name) | derived
    architectures = found.get("architectures")
    named = [found.get("_class_name"), *(architectures if isinstance(architectures, list) else [architectures])]
    for class_name in named:
        if class_name is not None and class_name not in _names(component):
            key = "_class_name" if class_name == found.get("_class_name") else "architectures"
            raise ModelFilesRefused(f"{name}: {key} is {shown(class_name)}, expected {component.class_name}")
    return (yield from check_values(name, found, component.config))


def _check_processor(folder: Path, component: ProcessorClass) -> Checks[dict[str, Any] | None]:
    """The config of its image processor. As in transformers, that in the whole processor's file comes first."""
    if (folder / _WHOLE_PROCESSOR).exists():
        name = f"{folder.name}/{_WHOLE_PROCESSOR}"
        # Its video processor and its template, which is code in Jinja, are not used.
        allowed = rules("video_processor chat_template", name="processor_class?", objects={_INNER: component.config})
        found = read_object(folder.parent, name)
        config = yield from check_values(name, found, allowed)
        yield from _check_processor_names(name, component, found)
        if found.get(_INNER) is not None:
            yield from _check_processor_names(f"{name}: {_INNER}", component, found[_INNER])
            return config[_INNER] if config else None
    name = f"{folder.name}/{_PREPROCESSOR}"
    found = read_object(folder.parent, name)
    yield from _check_processor_names(name, component, found)
    return (yield from check_values(name, found, component.config))


def _check_processor_names(name: str, component: ProcessorClass, found: Any) -> Iterator[str]:
    known = {"processor_class": _names(component), "image_processor_type": component.image_processors}
    for key, names in known.items() if isinstance(found, dict) else ():
        if found.get(key) is not None and found[key] not in names:
            yield f"{name}: {key} is {shown(found[key])}, expected {names[0]}"


def _check_tokenizer(model: Path, part: str, component: TokenizerClass) -> Checks[None]:
    for file, allowed in TOKENIZER_RULES.items():
        if (model / part / file).exists():
            yield from apart(_check_tokenizer_config(model, f"{part}/{file}", component, allowed))
    for file in _VOCABULARIES:
        if (model / part / file).exists():
            yield from fault_of(find_file, model, f"{part}/{file}")
    if (model / part / _TEMPLATES).exists():
        yield f"{part}/{_TEMPLATES}: not supported; remove it"
    choices = component.vocabularies
    if not any(all((model / part / file).is_file() for file in files) for files in choices):
        # Without these transformers creates a tokenizer with an empty vocabulary.
        yield f"{part}: lacks {', or '.join(' and '.join(files) for files in choices)}{_other_vocabulary(model / part)}"


def _check_tokenizer_config(model: Path, name: str, component: TokenizerClass, allowed: Rules) -> Checks[None]:
    config = (yield from check_values(name, read_object(model, name), allowed)) or {}
    found = config.get("tokenizer_class") or component.class_name
    if found not in _names(component):
        yield f"{name}: tokenizer_class is {shown(found)}, expected {component.class_name}"
    if config.get("backend") not in (None, "tokenizers"):
        yield f"{name}: backend is {shown(config['backend'])}, expected tokenizers"


def _other_vocabulary(tokenizer: Path) -> str:
    if not (tokenizer / "spiece.model").exists():
        return ""
    return (
        "; spiece.model is for the library sentencepiece, which is not used: get tokenizer.json, which holds the same"
    )


def _names(component: Component) -> tuple[str, ...]:
    return (component.class_name, *component.aliases)
