"""What a config offers to clients: each model has its family's values, with the config's overrides."""

import math
from collections.abc import Callable
from functools import partial

from msgspec import structs

from weave.config.devices import check_devices
from weave.config.schema import (
    BoundsOverride,
    Config,
    ConfigError,
    ControlConfig,
    EmbeddingConfig,
    LoraConfig,
    ModelConfig,
)
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.protocol.bounds import Bounds
from weave.protocol.checks import Offered, check_parameters
from weave.protocol.client_messages import ModelOffer, Models, encode
from weave.protocol.defaults import plainest, with_defaults
from weave.protocol.embeddings import EmbeddingOffer, EmbeddingOffers
from weave.protocol.errors import RequestError
from weave.protocol.frames import MAX_CONTROL_BYTES
from weave.protocol.inputs import REFERENCES, ControlOffer, ControlOffers
from weave.protocol.loras import LoraOffer, LoraOffers
from weave.protocol.text import LONGEST_TITLE, hidden_in, is_model_id

# Leaves room for the names of the default model and the loaded model.
_LONGEST_LISTING = MAX_CONTROL_BYTES - 256
# Bounds that the family's classes set: with a wider one they would fail, or ignore what is beyond.
_OF_THE_CLASSES = ("references", "controls", "control_start", "control_end")


def offers(config: Config) -> tuple[ModelOffer, ...]:
    """What clients may know of each model, in the config's order. Raises ConfigError if a model's values conflict."""
    return tuple(_offer(model_id, model) for model_id, model in config.models.items())


def check(config: Config) -> None:
    """Checks that need more than one field. Raises ConfigError."""
    check_devices(config.device)
    if config.default_model is not None and config.default_model not in config.models:
        raise ConfigError(f"default_model is {config.default_model!r}, which is not in [models]")
    numbers: dict[int, str] = {}
    for model_id, model in config.models.items():
        if model.v1_id is not None and numbers.setdefault(model.v1_id, model_id) != model_id:
            raise ConfigError(f"models.{model_id}.v1_id is {model.v1_id}, as is {numbers[model.v1_id]}'s")
    conflicts = []
    checks: list[Callable[[], object]] = [partial(_offer, *item) for item in config.models.items()]
    checks += [partial(_lora_offer, *item) for item in config.loras.items()]
    checks += [partial(_embedding_offer, *item) for item in config.embeddings.items()]
    checks += [partial(_control_offer, *item) for item in config.controls.items()]
    for check_one in checks:
        try:
            check_one()
        except ConfigError as error:
            conflicts.append(str(error))
    if conflicts:
        raise ConfigError("; ".join(conflicts))
    listing = Models(
        models=offers(config),
        default=None,
        loaded=None,
        loras=lora_offers(config),
        embeddings=embedding_offers(config),
        controls=control_offers(config),
    )
    if (size := len(encode(listing))) > _LONGEST_LISTING:
        raise ConfigError(
            f"the list of all models, LoRAs, embeddings and ControlNets has {size} bytes; it must have at most "
            f"{_LONGEST_LISTING}, or no client could list them: remove some, or shorten their titles"
        )


def lora_offers(config: Config) -> LoraOffers:
    """What clients may know of each LoRA, in the config's order. Raises ConfigError."""
    return tuple(_lora_offer(lora_id, lora) for lora_id, lora in config.loras.items())


def _lora_offer(lora_id: str, lora: LoraConfig) -> LoraOffer:
    _check_names(f"loras.{lora_id}", lora_id, lora)
    return LoraOffer(id=lora_id, family=lora.family, title=lora.title or lora_id, max_weight=lora.max_weight)


def embedding_offers(config: Config) -> EmbeddingOffers:
    """What clients may know of each embedding, in the config's order. Raises ConfigError."""
    return tuple(_embedding_offer(name, embedding) for name, embedding in config.embeddings.items())


def _embedding_offer(name: str, embedding: EmbeddingConfig) -> EmbeddingOffer:
    where = f"embeddings.{name}"
    family = _check_names(where, name, embedding)
    if not family.embedding_widths:
        known = ", ".join(known.name for known in FAMILIES.values() if known.embedding_widths)
        raise ConfigError(f"{where}.family is {family.name!r}; embeddings are for {known}")
    return EmbeddingOffer(id=name, family=embedding.family, title=embedding.title or name)


def control_offers(config: Config) -> ControlOffers:
    """What clients may know of each ControlNet, in the config's order. Raises ConfigError."""
    return tuple(_control_offer(name, control) for name, control in config.controls.items())


def _control_offer(name: str, control: ControlConfig) -> ControlOffer:
    where = f"controls.{name}"
    family = _check_names(where, name, control)
    if family.control_nets is None:
        known = ", ".join(known.name for known in FAMILIES.values() if known.control_nets)
        raise ConfigError(f"{where}.family is {family.name!r}; ControlNets are for {known}")
    return ControlOffer(id=name, family=control.family, title=control.title or name)


def _check_names(where: str, name: str, table: ModelConfig | LoraConfig | EmbeddingConfig | ControlConfig) -> Family:
    """The family that the table names. Raises ConfigError."""
    if not is_model_id(name):
        raise ConfigError(f"{where}: an ID is up to 64 of a-z, 0-9, '.', '_' and '-'")
    if (hidden := hidden_in(table.title)) is not None:
        raise ConfigError(f"{where}.title holds {hidden}, which is invisible or controls a terminal; remove it")
    if len(table.title) > LONGEST_TITLE:
        raise ConfigError(f"{where}.title has {len(table.title)} characters; it must have at most {LONGEST_TITLE}")
    if table.family not in FAMILIES:
        raise ConfigError(f"{where}.family is {table.family!r}; it must be one of {', '.join(FAMILIES)}")
    return FAMILIES[table.family]


def _offer(model_id: str, model: ModelConfig) -> ModelOffer:
    where = f"models.{model_id}"
    family = _check_names(where, model_id, model)
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
        tasks=_tasks(where, family, model),
        bounds=bounds,
        defaults=defaults,
        schedulers=family.schedulers,
        caches=family.caches,
        v1_id=model.v1_id,
    )
    _check_defaults(where, offer)
    return offer


def _tasks(where: str, family: Family, model: ModelConfig) -> tuple[str, ...]:
    if model.references is None:
        return family.tasks
    if REFERENCES not in family.pipelines:
        known = ", ".join(known.name for known in FAMILIES.values() if REFERENCES in known.pipelines)
        raise ConfigError(f"{where}.references: the family is {family.name!r}; reference images are for {known}")
    others = tuple(task for task in family.tasks if task != REFERENCES)
    if not (others or model.references):
        raise ConfigError(f"{where}.references: models of family {family.name!r} can do nothing without them")
    return (*others, REFERENCES) if model.references else others


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
        family = getattr(bounds, name)
        if name in _OF_THE_CLASSES and not family.min <= bound.min <= bound.max <= family.max:
            raise ConfigError(f"{where}.bounds.{name} must be within {family.min} and {family.max}, the family's")
        bounds = structs.replace(bounds, **{name: bound})
    return bounds


def _check_defaults(where: str, offer: ModelOffer) -> None:
    """A request without parameters, and with as few references as may be, must pass the same checks as any other."""
    prompt = "x" * offer.bounds.prompt_characters.min
    request = structs.replace(plainest(offer.bounds), prompt=prompt, images=offer.bounds.images.min)
    parameters = with_defaults(request, offer.defaults, offer.bounds, seed=0)
    try:
        offered = Offered(bounds=offer.bounds, schedulers=offer.schedulers, tasks=offer.tasks, caches=offer.caches)
        check_parameters(parameters, offered)
    except RequestError as error:
        raise ConfigError(f"{where}.defaults: {error.message}") from None
