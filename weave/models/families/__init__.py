"""The families that can be loaded: a list of our own, so that no model's files choose what runs.

No class comes from a model's files: each component is loaded with the class that its family names, and the pipeline is
put together from them. So neither model_index.json, nor auto_map, nor a file of code in the folder has a say
(diffusers has had ways around its own checks: CVE-2026-44513).
"""

from importlib import import_module

from weave.models.family import Family

# Modules of this package. A new family is a module of its own, and its line here.
_MODULES = (
    "stable_diffusion",
    "sdxl",
    "sd3",
    "flux",
)

FAMILIES: dict[str, Family] = {
    family.name: family for module in _MODULES for family in import_module(f"{__name__}.{module}").FAMILIES
}
