"""weavectl plan: how much device memory a model needs, and where it fits, from its files' headers. Needs no daemon."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from weave.config import load as config_file
from weave.config.offers import offers
from weave.config.schema import Config, ConfigError
from weave.models.assets import Source, find_assets, source_of
from weave.models.detect import detect
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.models.files import ModelFilesRefused
from weave.models.plans import CARDS, CONTEXT, PLACEMENTS, Estimate, Needs, Plan, Setting, choose, needs_of, work_of
from weave.protocol.bounds import check_range
from weave.protocol.defaults import with_defaults
from weave.protocol.errors import RequestError
from weave.protocol.parameters import Defaults, RequestedParameters
from weave.weavectl.doctor import EXIT_PROBLEM
from weave.weavectl.locate import is_systems, socket_to_check
from weave.weavectl.look import dtypes, shown_bytes
from weave.weavectl.output import Output, UsageError


class _Model(NamedTuple):
    """What the config or the path says of the model."""

    family: Family
    source: Source
    setting: Setting
    defaults: Defaults


def plan(options: argparse.Namespace, output: Output) -> int:
    """Show how much device memory a model needs, and in which plans it fits."""
    system = options.config is None and is_systems(socket_to_check(options))
    try:
        config = config_file.load(options.config, system=system)
        model = _model(options.model, config)
        _show(output, options, config, model)
    except (ConfigError, ModelFilesRefused, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        output.line(str(error), good=False, detail=str(error))
        return EXIT_PROBLEM
    return 0


def _model(name: str, config: Config) -> _Model:
    """Raises ConfigError, ModelFilesRefused, UsageError."""
    if (known := config.models.get(name)) is not None:
        offer = next(offer for offer in offers(config) if offer.id == name)
        source = source_of(known.path, known.layout, known.parts)
        return _Model(FAMILIES[known.family], source, known.memory, offer.defaults)
    if "/" not in name and not Path(name).exists():
        models = ", ".join(config.models)
        raise UsageError(f"{name} is not a model in the config (models: {models or 'none'}), and not a file or folder")
    detected = detect(Path(name))
    if detected.table != "models":
        raise UsageError(f"{name} is not a model; it belongs in {detected.table} in the config")
    family = FAMILIES[detected.families[0]]
    return _Model(family, detected.source, "auto", family.defaults)


def _show(output: Output, options: argparse.Namespace, config: Config, model: _Model) -> None:
    dtype = dtypes(config.device)[0]
    needs = needs_of(model.family, find_assets(model.family.name, model.source, dtype), dtype)
    width, height = options.size or (model.defaults.width, model.defaults.height)
    _check_size(model.family, width, height)
    asked = RequestedParameters(prompt="", width=width, height=height)
    parameters = with_defaults(asked, model.defaults, model.family.bounds, seed=0)
    found = needs.estimate(work_of(parameters, model.family.activations.least_reference))
    budgets = {**CARDS}
    if config.device.memory_bytes:
        budgets = {"budget": config.device.memory_bytes, **CARDS}
    if output.json:
        output.line("", **_fields(needs, found, budgets, model.setting, width, height))
    for line in _lines(needs, found, budgets, model.setting, f"{width}x{height}") if not output.json else ():
        output.line(line)


def _check_size(family: Family, width: int, height: int) -> None:
    """Raises UsageError."""
    try:
        check_range("width", width, family.bounds.width)
        check_range("height", height, family.bounds.height)
    except RequestError as error:
        raise UsageError(error.message) from None


def _lines(needs: Needs, found: Estimate, budgets: dict[str, int], setting: Setting, size: str) -> Iterator[str]:
    """For people."""
    for part, weights in needs.sizes.items():
        yield f"{part:<15} {shown_bytes(weights.whole):>9} in {needs.dtype}; {shown_bytes(weights.streamed)} streamed"
    yield f"{'denoising':<15} {shown_bytes(found.denoising):>9} for {size}"
    yield f"{'decoding':<15} {shown_bytes(found.decoding):>9}; {shown_bytes(found.tiled)} in tiles"
    yield f"{'context':<15} {shown_bytes(CONTEXT):>9} of the GPU"
    yield ""
    yield f"{'plan':<15} {'needs':>9}  " + "  ".join(f"{card:>7}" for card in budgets)
    for plan in _plans(found):
        needed = found.needed(plan) + CONTEXT
        fits = "  ".join(f"{'fits' if needed <= budget else '-':>7}" for budget in budgets.values())
        yield f"{plan.name:<15} {shown_bytes(needed):>9}  {fits}"
    chosen = (choose(found, budget - CONTEXT, setting) for budget in budgets.values())
    yield f"{f'memory={setting}':<15} {'':>9}  " + "  ".join(f"{plan.name if plan else 'none':>7}" for plan in chosen)
    yield ""
    yield "Estimates: none was measured on a GPU."


def _plans(found: Estimate) -> list[Plan]:
    """All different plans."""
    tiles = (False, True) if found.tiled < found.decoding else (False,)
    return [Plan(placement, tiled) for tiled in tiles for placement in PLACEMENTS]


def _fields(
    needs: Needs, found: Estimate, budgets: dict[str, int], setting: Setting, width: int, height: int
) -> dict[str, Any]:
    """For scripts."""
    chosen = {card: choose(found, budget - CONTEXT, setting) for card, budget in budgets.items()}
    return {
        "family": needs.family.name,
        "dtype": needs.dtype,
        "width": width,
        "height": height,
        "weights": {part: size._asdict() for part, size in needs.sizes.items()},
        "denoising": found.denoising,
        "decoding": found.decoding,
        "tiled": found.tiled,
        "context": CONTEXT,
        "plans": {plan.name: found.needed(plan) + CONTEXT for plan in _plans(found)},
        "fits": {card: plan and plan.name for card, plan in chosen.items()},
    }
