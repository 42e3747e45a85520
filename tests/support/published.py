"""The JSON files of models as their makers published them, with the keys of many years: they must go on loading.

published_models.json has one line for each file. Vocabularies are empty: the tests do not read them. The files from
Chroma1-HD on were not copied, but put together from what is known of them.
"""

import json
from pathlib import Path
from typing import Any

import torch

from weave.gpu_worker.classes import component_class
from weave.models.components import ModelClass

# By the model's name: its family, and its files by their path.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    name: (model["family"], model["files"])
    for name, model in json.loads(Path(__file__).with_name("published_models.json").read_text()).items()
}


def on_meta(component: ModelClass, config: dict[str, Any]) -> Any:
    """The real class with a published config, without memory."""
    known = {k: v for k, v in config.items() if k in component.config.keys or k in component.config.objects}
    made = component_class(component)
    with torch.device("meta"):
        return made(**known) if component.library == "diffusers" else made(made.config_class(**known))


def write(files: dict[str, Any], folder: Path) -> Path:
    """The files, without weights."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder
