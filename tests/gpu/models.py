"""The models of the visit: the demo model, and a tiny one of each family."""

from pathlib import Path

from tests.support.reference import make_small_model, write_index
from weave.models import families

FAMILIES = tuple(name for name in families.FAMILIES if name != "sd2")  # it has sd1's pipeline


def make(folder: Path) -> Path:
    """A model of each family, in folders named after them."""
    for name in FAMILIES:
        write_index(name, make_small_model(name, folder / name))
    return folder


def tables(folder: Path) -> str:
    return "".join(f'[models.{name}]\npath = "{folder / name}"\nfamily = "{name}"\n' for name in FAMILIES)
