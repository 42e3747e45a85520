"""The families that can be loaded: a fixed list, so that a model's files cannot choose what runs.

Each component is loaded with the class that its family names, and the pipeline is built from those components. So
neither model_index.json, nor auto_map, nor a file of code in the folder has any effect (the checks in diffusers itself
have been bypassed: CVE-2026-44513).
"""

from importlib import import_module

from weave.models.family import Family

# Modules of this package. A new family is one module and one line here.
_MODULES = (
    "stable_diffusion",
    "sdxl",
    "sd3",
    "flux",
    "chroma",
    "z_image",
    "flux2_klein",
    "qwen_image",
    "qwen_image_edit",
    "krea2",
)

FAMILIES: dict[str, Family] = {
    family.name: family for module in _MODULES for family in import_module(f"{__name__}.{module}").FAMILIES
}
