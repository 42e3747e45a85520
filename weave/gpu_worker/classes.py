"""The libraries' classes for the names in weave/models."""

import copy
import importlib
import inspect
from collections.abc import Collection, Sequence
from typing import Any

import diffusers
import transformers
from PIL import Image, PngImagePlugin

from weave.gpu_worker.pipelines import adapter_of
from weave.models.components import Component, class_names
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.protocol.inputs import TEXT_TO_IMAGE, control_task

# What torch imports in `with torch.device`, and tqdm with its first bar, which transformers makes in loading.
_IMPORTED_LATER = ("torch.utils._device", "multiprocessing.synchronize")
_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def component_class(component: Component) -> Any:
    """The class of a model, tokenizer or processor."""
    return getattr(_LIBRARIES[component.library], component.class_name)


def pipeline_class(family: Family) -> Any:
    """The class that combines a family's components."""
    return getattr(diffusers, family.pipeline)


def pipeline_for(pipeline: Any, family: Family, task: str, controls: Sequence[Any] = ()) -> Any:
    """A pipeline for `task` that shares the components of the family's `pipeline`, with these ControlNets."""
    classes = {TEXT_TO_IMAGE: family.pipeline, **family.task_pipelines}
    class_name = classes[control_task(task) if controls else task]
    if class_name == family.pipeline:
        return pipeline
    task_class = getattr(diffusers, class_name)
    settings = {key: pipeline.config[key] for key in family.settings.keys}
    given = {**pipeline.components, **family.fixed, **settings}
    # The classes correct some values of the scheduler's config. As in text-to-image, it is the model's own scheduler.
    given["scheduler"] = copy.deepcopy(pipeline.__dict__.get("own_scheduler", pipeline.scheduler))
    given |= {"controlnet": controls[0] if len(controls) == 1 else list(controls)} if controls else {}
    taken = inspect.signature(task_class.__init__).parameters
    made = task_class(**{name: value for name, value in given.items() if name in taken})
    made.scheduler = pipeline.scheduler
    made.set_progress_bar_config(disable=True)
    return made


def import_family(name: str, tasks: Collection[str]) -> None:
    """Import every class that the family needs for `tasks`: diffusers and transformers import lazily. Starts no
    thread."""
    family = FAMILIES[name]
    pipeline_class(family)
    for task, class_name in family.task_pipelines.items():
        if task in tasks:
            getattr(diffusers, class_name)
    for component in family.components.values():
        for class_name in class_names(component):
            getattr(_LIBRARIES[component.library], class_name)
    if family.control_nets is not None:
        component_class(family.control_nets.model)
    for scheduler in family.own_schedulers:
        getattr(diffusers, scheduler)._get_compatibles()  # from_config imports them
    adapter_of(name)
    if family.caches:
        importlib.import_module("diffusers.hooks")
    Image.preinit()
    assert PngImagePlugin  # Image.save imports it by name
    for module in _IMPORTED_LATER:
        importlib.import_module(module)
