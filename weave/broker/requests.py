"""From a decoded request to what the worker will be asked: the model, its defaults, its bounds."""

import secrets

from weave.config.parts import BrokerConfig
from weave.protocol.bounds import Parameters, check_parameters, check_preview_every
from weave.protocol.client_messages import Generate, ModelOffer
from weave.protocol.errors import ErrorCode, RequestError

# Below 2**53, which JSON readers that have doubles keep, and within what torch's manual_seed takes as it is.
_RANDOM_SEEDS = 2**32


def pick_model(config: BrokerConfig, name: str | None, loaded: str | None) -> ModelOffer:
    """The model of that ID; with no ID the loaded one, else the default model.

    Raises RequestError (unknown_model, no_model).
    """
    offers = {model.id: model for model in config.models}
    # A reload may have taken the loaded model from the list, and then its worker is about to end.
    for wanted in (name,) if name is not None else (loaded, config.default_model):
        if wanted in offers:
            return offers[wanted]
    if name is None:
        raise RequestError(ErrorCode.NO_MODEL, "the daemon's config has no model", field="model")
    raise RequestError(
        ErrorCode.UNKNOWN_MODEL, "no such model; list_models tells which there are", field="model", value=name[:64]
    )


def pick_v1_model(config: BrokerConfig, v1_id: int) -> ModelOffer:
    """The model of that number; 0 is the default model. Raises RequestError (unknown_model)."""
    for model in config.models:
        if model.v1_id == v1_id or (v1_id == 0 and model.id == config.default_model):
            return model
    raise RequestError(ErrorCode.UNKNOWN_MODEL, f"no model has the number {v1_id}", field="model", value=v1_id)


def fill_in(request: Generate, model: ModelOffer, prompts: tuple[str, ...] = ()) -> Parameters:
    """The request with nothing left open, inside the model's bounds; `prompts` is one for each text encoder.

    Raises RequestError (out_of_bounds).
    """

    def given(name: str) -> object:
        value = getattr(request, name)
        return getattr(model.defaults, name) if value is None else value

    open_parameters = {name: given(name) for name in ("width", "height", "steps", "cfg_scale", "scheduler")}
    parameters = Parameters(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=secrets.randbelow(_RANDOM_SEEDS) if request.seed is None else request.seed,
        images=request.images,
        encoder_prompts=prompts if len(set(prompts)) > 1 else (),
        **open_parameters,  # type: ignore[arg-type]
    )
    check_parameters(parameters, model.bounds, model.schedulers)
    check_preview_every(request.preview_every, model.bounds)
    return parameters
