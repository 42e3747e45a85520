"""Which plan a job gets, and on what that rests."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.activations import MODELS, measured
from tests.support.reference import make_small_model
from weave.gpu_worker.loading import load_pipeline
from weave.models.assets import Source, find_assets
from weave.models.components import ModelClass
from weave.models.families import FAMILIES
from weave.models.memory import Size, blocks, size_in_blocks
from weave.models.plans import CARDS, CONTEXT, PLACEMENTS, Estimate, Plan, after, choose, default_work, needs_of
from weave.weavectl.known import KNOWN

OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"


@pytest.mark.parametrize("family", MODELS)
def test_activations_are_those_of_the_published_models(family: str) -> None:
    """As counted with tensors without memory. Some of it depends on the number of layers, which is reduced here."""
    described, found = FAMILIES[family].activations, measured(family)
    for name in ("denoiser", "text", "vae"):
        assert getattr(found, name) == pytest.approx(getattr(described, name), rel=0.05), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_take_what_the_headers_say(family: str, dtype: str, tmp_path: Path) -> None:
    import torch

    model = make_small_model(family, tmp_path / family)
    needs = needs_of(FAMILIES[family], find_assets(family, Source(model), dtype), dtype)
    pipeline = load_pipeline(family, Source(model), torch.device("cpu"), getattr(torch, dtype))
    for part, size in needs.sizes.items():
        # With the buffers that are in the files: sd3's table of positions is large. Shared tensors count once.
        loaded = {tensor.data_ptr(): tensor.nbytes for tensor in getattr(pipeline, part).state_dict().values()}
        assert size.whole == pytest.approx(sum(loaded.values()), rel=0.01, abs=1024), part
    assert needs.sizes.keys() == {p for p, c in FAMILIES[family].components.items() if isinstance(c, ModelClass)}


def test_blocks_are_found_by_the_names_of_tensors() -> None:
    own = {f"layers.{number}.{name}.weight": 10 for number in range(20) for name in ("q", "ff.net.0", "ff.net.2")}
    assert blocks({**own, "proj.weight": 5}) == {**{f"layers.{n}": 30 for n in range(20)}, "": 5}
    # A block that is most of its component is split into its own.
    nested = {f"up.0.attentions.0.blocks.{number}.weight": 10 for number in range(9)}
    assert blocks({**nested, "up.0.attentions.0.proj.weight": 1, "up.1.weight": 1}) == {
        **{f"up.0.attentions.0.blocks.{n}": 10 for n in range(9)},
        "": 1,
        "up.1": 1,
    }
    assert size_in_blocks({"a.weight": 7}) == Size(7, 7) and size_in_blocks({}) == Size(0, 0)


FOUND = Estimate(
    encoders={"text_encoder": Size(50, 10)}, denoiser=Size(100, 20), vae=5, denoising=10, decoding=40, tiled=8
)


@pytest.mark.parametrize(
    ("available", "plan"),
    [
        (None, "card"),
        (195, "card"),
        (194, "stages"),
        (110, "stages"),
        (109, "streamed"),
        (45, "streamed"),
        # The VAE cannot decode the whole image.
        (44, "streamed+tiled"),
        (30, "streamed+tiled"),
        (29, None),
        (0, None),
    ],
)
def test_the_first_plan_that_fits_is_chosen(available: int | None, plan: str | None) -> None:
    chosen = choose(FOUND, available)
    assert (chosen and chosen.name) == plan
    for placement in PLACEMENTS:
        only = choose(FOUND, available, placement)
        assert only is None or only.placement == placement
        assert available is None or only is None or FOUND.needed(only) <= available


def test_after_a_shortage_the_next_plan_needs_less() -> None:
    card, stages = Plan("card"), Plan("stages")
    last = Plan("streamed", tiled=True)
    assert after(card, FOUND, has_budget=True) == stages and after(stages, FOUND, has_budget=True) == last
    assert after(last, FOUND, has_budget=True) is None
    # On the CPU only tiles save memory, and only of images larger than a tile.
    assert after(card, FOUND, has_budget=False) == Plan("card", tiled=True)
    assert after(card, FOUND._replace(tiled=40), has_budget=False) is None


def rows() -> list[str]:
    """The table in docs/operations.md."""
    lines = []
    for model in KNOWN:
        found = model.needs.estimate(default_work(FAMILIES[model.family]))
        plans = (choose(found, size - CONTEXT) for size in CARDS.values())
        shown = [f"{(found.needed(Plan(placement)) + CONTEXT) / 1e9:.1f}" for placement in PLACEMENTS]
        name = model.repository.rpartition("/")[2]
        lines.append(f"| {name} | {' | '.join(shown)} | {' | '.join(plan.name if plan else '-' for plan in plans)} |")
    return lines


def test_the_table_in_the_docs_is_what_the_code_says() -> None:
    table: Any = re.search(r"<!-- plans -->\n.*\n.*\n((?:\|.*\n)+)<!-- end of plans -->", OPERATIONS.read_text())
    assert table[1].splitlines() == rows()
