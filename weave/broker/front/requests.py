"""From a decoded request of either version to its model and its task."""

import secrets

from msgspec import structs

from weave.config.child_configs import BrokerConfig
from weave.protocol import version1
from weave.protocol.checks import Offered, check_parameters
from weave.protocol.client_messages import Generate, ModelOffer
from weave.protocol.defaults import with_defaults
from weave.protocol.embeddings import embeddings_for
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.inputs import controls_for
from weave.protocol.loras import loras_for
from weave.protocol.parameters import Parameters, RequestedParameters
from weave.protocol.tasks import Task

# JSON readers that use doubles keep integers below 2**53, and torch's manual_seed uses 32 bits.
_RANDOM_SEEDS = 2**32


def pick_model(config: BrokerConfig, name: str | None, loaded: str | None) -> ModelOffer:
    """The model with the ID `name`; without a name the loaded model, else the default model.

    Raises RequestError (unknown_model, no_model).
    """
    offers = {model.id: model for model in config.models}
    # A reload may have removed the loaded model, whose worker then ends soon.
    for wanted in (name,) if name is not None else (loaded, config.default_model):
        if wanted in offers:
            return offers[wanted]
    if name is None:
        raise RequestError(ErrorCode.NO_MODEL, "the daemon's config has no model", field="model")
    raise RequestError(
        ErrorCode.UNKNOWN_MODEL, "no such model; list_models returns those on offer", field="model", value=name[:64]
    )


def pick_model_of_version_1(config: BrokerConfig, v1_id: int) -> ModelOffer:
    """The model with that number; 0 is the default model. Raises RequestError (unknown_model)."""
    for model in config.models:
        if model.v1_id == v1_id or (v1_id == 0 and model.id == config.default_model):
            return model
    raise RequestError(ErrorCode.UNKNOWN_MODEL, f"no model has the number {v1_id}", field="model", value=v1_id)


def task_of(request: Generate, model: ModelOffer, config: BrokerConfig) -> Task:
    """The task that a version 2 request becomes. Raises RequestError (out_of_bounds, invalid_request)."""
    parameters = with_defaults(request, model.defaults, model.bounds, seed=_random_seed())
    check_bounds(parameters, model, config)
    return Task(parameters=parameters, deliver=request.deliver)


def task_of_version_1(request: version1.Request, model: ModelOffer, config: BrokerConfig) -> Task:
    """The task that a version 1 request becomes: one raw image. Raises as task_of does."""
    requested = RequestedParameters(
        prompt=request.prompts[0],
        width=request.width,
        height=request.height,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        seed=request.seed or None,
        format="raw",
    )
    parameters = with_defaults(requested, model.defaults, model.bounds, seed=_random_seed())
    if len(set(request.prompts)) > 1:
        parameters = structs.replace(parameters, encoder_prompts=request.prompts)
    check_bounds(parameters, model, config)
    return Task(parameters=parameters)


def check_bounds(parameters: Parameters, model: ModelOffer, config: BrokerConfig) -> None:
    """The broker's check; the worker makes its own. Raises RequestError (out_of_bounds, invalid_request)."""
    offered = Offered(
        bounds=model.bounds,
        schedulers=model.schedulers,
        caches=model.caches,
        tasks=model.tasks,
        loras=loras_for(model.family, config.loras),
        embeddings=embeddings_for(model.family, config.embeddings),
        controls=controls_for(model.family, config.controls),
    )
    check_parameters(parameters, offered)


def _random_seed() -> int:
    return secrets.randbelow(_RANDOM_SEEDS)
