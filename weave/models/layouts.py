"""Checks that a model's folder belongs to its family, by its JSON files: classes, config values and shared sizes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weave.models.components import TOKENIZER_RULES, Component, ModelClass, TokenizerClass
from weave.models.configs import check_values, read_object, shown
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.models.files import ModelFilesRefused, find_file
from weave.models.schedulers import SCHEDULER_RULES
from weave.models.weights import choose_weights

# Tokenizers open these besides the files in TOKENIZER_RULES, if they exist.
_VOCABULARIES = ("added_tokens.json", "tokenizer.json", "vocab.json", "merges.txt", "spiece.model")
# No file of these is worth a note: what git, the Hub's tools and people put beside a model.
_BESIDE = {".md", ".txt", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".pdf", ""}


class Checked(NamedTuple):
    """Each component's config by its folder, including "scheduler" but no tokenizers, and the pipeline's settings."""

    configs: dict[str, dict[str, Any]]
    settings: dict[str, bool]


def check_layout(name: str, model: Path) -> Checked:
    """Raises ModelFilesRefused unless the folder `model` is a model of the family `name`. Does not look at weights."""
    family = FAMILIES[name]
    if not model.exists():
        raise ModelFilesRefused(f"{model.name}: no such model folder")
    if not model.is_dir():
        raise ModelFilesRefused(f"{model.name}: not a folder in diffusers layout; convert it")
    settings = _check_index(family, model)
    configs = {"scheduler": _check_scheduler(family, model)}
    present = {part for part in family.components if (model / part).is_dir()}
    optional = family.optional if present & family.optional else frozenset()
    for part, component in family.components.items():
        if part not in present:
            if part not in family.optional or part in optional:  # the optional ones are all present, or none is
                raise ModelFilesRefused(f"{part}: this family needs the folder, and the model does not have it")
        elif isinstance(component, TokenizerClass):
            _check_tokenizer(model, part, component)
        else:
            configs[part] = _check_component(model, part, component)
    _check_sizes(family, configs)
    return Checked(configs, settings)


def check_weights(name: str, model: Path, dtype: str) -> dict[str, tuple[str, ...]]:
    """The files with each component's weights by the component's folder, in a model that check_layout() accepts.

    `dtype` is what they are loaded in, by its name in torch; "auto" has no preference. Raises ModelFilesRefused.
    """
    return {
        part: choose_weights(model, part, component.weights, dtype)
        for part, component in FAMILIES[name].components.items()
        if isinstance(component, ModelClass) and (model / part).is_dir()
    }


def unread_files(name: str, model: Path, weights: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The files of a model's folder that are never opened, relative to it, but for documentation and images."""
    opened = {"model_index.json", "scheduler/scheduler_config.json"}
    for part, component in FAMILIES[name].components.items():
        if isinstance(component, TokenizerClass):
            opened |= {f"{part}/{file}" for file in (*TOKENIZER_RULES, *_VOCABULARIES)}
        elif part in weights:
            opened |= {f"{part}/config.json", *weights[part]}
    found = []
    for folder, folders, files in os.walk(model):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        names = (Path(folder, file).relative_to(model) for file in sorted(files) if not file.startswith("."))
        found += [str(path) for path in names if path.suffix.lower() not in _BESIDE and str(path) not in opened]
    return found


def _check_sizes(family: Family, configs: dict[str, dict[str, Any]]) -> None:
    models = {part: component for part, component in family.components.items() if isinstance(component, ModelClass)}
    effective = {part: {**models[part].defaults, **configs[part]} for part in models if part in configs}
    for expected in family.sizes(effective):
        found = effective[expected.part][expected.key]
        # A list has one value per block.
        if any(value != expected.value for value in (found if isinstance(found, list) else [found])):
            detail = f"{expected.key} is {shown(found)}, expected {shown(expected.value)} ({expected.source})"
            raise ModelFilesRefused(f"{expected.part}/config.json: {detail}")


def _check_index(family: Family, model: Path) -> dict[str, bool]:
    if not (model / "model_index.json").exists():
        return {}
    index = read_object(model, "model_index.json")
    if (name := index.get("_class_name")) not in (family.pipeline, *family.sibling_pipelines):
        raise ModelFilesRefused(f"model_index.json: _class_name is {shown(name)}, expected {family.pipeline}")
    for part, component in family.components.items():
        entry = index.get(part)
        if entry is None or entry == [None, None]:
            continue
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in _names(component):
            raise ModelFilesRefused(f"model_index.json: {part} is {shown(entry)}, expected {component.class_name}")
    settings = {key: index[key] for key in family.settings if key in index}
    for key, value in settings.items():
        if not isinstance(value, bool):
            raise ModelFilesRefused(f"model_index.json: {key} is {shown(value)}, expected true or false")
    return settings


def _check_scheduler(family: Family, model: Path) -> dict[str, Any]:
    name = "scheduler/scheduler_config.json"
    config = check_values(name, read_object(model, name), SCHEDULER_RULES)
    class_name = family.own_scheduler(config.get("_class_name"))
    if class_name is None:
        known = ", ".join((*family.own_schedulers, *family.related_schedulers))
        raise ModelFilesRefused(f"{name}: _class_name is {shown(config.get('_class_name'))}, expected one of {known}")
    return config | {"_class_name": class_name}


def _check_component(model: Path, part: str, component: ModelClass) -> dict[str, Any]:
    name = f"{part}/config.json"
    found = read_object(model, name)
    architectures = found.get("architectures")
    named = [found.get("_class_name"), *(architectures if isinstance(architectures, list) else [architectures])]
    for class_name in named:
        if class_name is not None and class_name not in _names(component):
            key = "_class_name" if class_name == found.get("_class_name") else "architectures"
            raise ModelFilesRefused(f"{name}: {key} is {shown(class_name)}, expected {component.class_name}")
    return check_values(name, found, component.config)


def _check_tokenizer(model: Path, part: str, component: TokenizerClass) -> None:
    for file, allowed in TOKENIZER_RULES.items():
        if (model / part / file).exists():
            config = check_values(f"{part}/{file}", read_object(model, f"{part}/{file}"), allowed)
            found = config.get("tokenizer_class") or component.class_name
            if found not in _names(component):
                detail = f"tokenizer_class is {shown(found)}, expected {component.class_name}"
                raise ModelFilesRefused(f"{part}/{file}: {detail}")
            if config.get("backend") not in (None, "tokenizers"):
                raise ModelFilesRefused(f"{part}/{file}: backend is {shown(config['backend'])}, expected tokenizers")
    for file in _VOCABULARIES:
        if (model / part / file).exists():
            find_file(model, f"{part}/{file}")
    choices = component.vocabularies
    if not any(all((model / part / file).is_file() for file in files) for files in choices):
        # Without these transformers creates a tokenizer with an empty vocabulary.
        raise ModelFilesRefused(f"{part}: has neither {' nor '.join(' and '.join(files) for files in choices)}")


def _names(component: Component) -> tuple[str, ...]:
    return (component.class_name, *component.aliases)
