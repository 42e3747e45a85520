"""What a config offers to clients: each model has its family's values, with the config's overrides."""

import math

from msgspec import structs

from weave.config.schema import BoundsOverride, Config, ConfigError, ModelConfig
from weave.models.families import FAMILIES
from weave.protocol.bounds import Bounds
from weave.protocol.client_messages import ModelOffer
from weave.protocol.errors import RequestError
from weave.protocol.parameters import RequestedParameters, check_parameters, with_defaults
from weave.protocol.text import LONGEST_TITLE, hidden_in, is_model_id


def offers(config: Config) -> tuple[ModelOffer, ...]:
    """What clients may know of each model, in the config's order. Raises ConfigError if a model's values conflict."""
    return tuple(_offer(model_id, model) for model_id, model in config.models.items())


def check(config: Config) -> None:
    """Checks that need more than one field. Raises ConfigError."""
    if config.default_model is not None and config.default_model not in config.models:
        raise ConfigError(f"default_model is {config.default_model!r}, which is not in [models]")
    numbers: dict[int, str] = {}
    for model_id, model in config.models.items():
        if model.v1_id is not None and numbers.setdefault(model.v1_id, model_id) != model_id:
            raise ConfigError(f"models.{model_id}.v1_id is {model.v1_id}, as is {numbers[model.v1_id]}'s")
    conflicts = []
    for model_id, model in config.models.items():
        try:
            _offer(model_id, model)
        except ConfigError as error:
            conflicts.append(str(error))
    if conflicts:
        raise ConfigError("; ".join(conflicts))


def _offer(model_id: str, model: ModelConfig) -> ModelOffer:
    where = f"models.{model_id}"
    if not is_model_id(model_id):
        raise ConfigError(f"{where}: a model's ID is up to 64 of a-z, 0-9, '.', '_' and '-'")
    if (hidden := hidden_in(model.title)) is not None:
        raise ConfigError(f"{where}.title holds {hidden}, which is invisible or controls a terminal; remove it")
    if len(model.title) > LONGEST_TITLE:
        raise ConfigError(f"{where}.title has {len(model.title)} characters; it must have at most {LONGEST_TITLE}")
    family = FAMILIES.get(model.family)
    if family is None:
        raise ConfigError(f"{where}.family is {model.family!r}; it must be one of {', '.join(FAMILIES)}")
    for part in model.parts:
        if part not in family.components:
            known = ", ".join(family.components)
            raise ConfigError(f"{where}.parts.{part}: the components of family {family.name} are {known}")
    bounds = _bounds(where, family.bounds, model.bounds)
    changed = {name: value for name, value in structs.asdict(model.defaults).items() if value is not None}
    defaults = structs.replace(family.defaults, **changed)
    offer = ModelOffer(
        id=model_id,
        family=model.family,
        title=model.title or model_id,
        tasks=family.tasks,
        bounds=bounds,
        defaults=defaults,
        schedulers=family.schedulers,
        v1_id=model.v1_id,
    )
    _check_defaults(where, offer)
    return offer


def _bounds(where: str, bounds: Bounds, override: BoundsOverride) -> Bounds:
    for name, changed in structs.asdict(override).items():
        if not changed:
            continue
        bound = getattr(bounds, name)
        try:
            bound = structs.replace(bound, **changed)
        except TypeError:
            known = ", ".join(bound.__struct_fields__)
            raise ConfigError(f"{where}.bounds.{name} takes {known}") from None
        if not all(map(math.isfinite, changed.values())):  # TOML has inf and nan
            raise ConfigError(f"{where}.bounds.{name} is not finite: {changed}")
        if bound.min > bound.max or getattr(bound, "multiple", 1) < 1:
            raise ConfigError(f"{where}.bounds.{name} is empty: {changed}")
        bounds = structs.replace(bounds, **{name: bound})
    return bounds


def _check_defaults(where: str, offer: ModelOffer) -> None:
    """A request without parameters must pass the same checks as any other."""
    prompt = "x" * offer.bounds.prompt_characters.min
    request = RequestedParameters(prompt=prompt, images=offer.bounds.images.min)
    parameters = with_defaults(request, offer.defaults, seed=0)
    try:
        check_parameters(parameters, offer.bounds, offer.schedulers)
    except RequestError as error:
        raise ConfigError(f"{where}.defaults: {error.message}") from None
