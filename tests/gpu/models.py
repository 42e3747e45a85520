"""The models of the visit: the demo model, and a tiny one of each family."""

from pathlib import Path

from tests.support.reference import make_small_model, write_index
from weave.models import families
from weave.protocol.inputs import TEXT_TO_IMAGE

# Those that generate from text alone. sd2 has sd1's pipeline.
FAMILIES = tuple(name for name, family in families.FAMILIES.items() if name != "sd2" and TEXT_TO_IMAGE in family.tasks)


def make(folder: Path) -> Path:
    """A model of each family, in folders named after them."""
    for name in FAMILIES:
        write_index(name, make_small_model(name, folder / name))
    return folder


def tables(folder: Path) -> str:
    return "".join(f'[models.{name}]\npath = "{folder / name}"\nfamily = "{name}"\n' for name in FAMILIES)
