"""From a decoded request, of either version, to the task: its model, that model's defaults and bounds."""

import secrets

from weave.config.child_configs import BrokerConfig
from weave.protocol import version1
from weave.protocol.bounds import Parameters
from weave.protocol.client_messages import Generate, ModelOffer
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.tasks import Task, TextToImage, check_task

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


def pick_model_of_version_1(config: BrokerConfig, v1_id: int) -> ModelOffer:
    """The model of that number; 0 is the default model. Raises RequestError (unknown_model)."""
    for model in config.models:
        if model.v1_id == v1_id or (v1_id == 0 and model.id == config.default_model):
            return model
    raise RequestError(ErrorCode.UNKNOWN_MODEL, f"no model has the number {v1_id}", field="model", value=v1_id)


def task_of(request: Generate, model: ModelOffer) -> Task:
    """What a version 2 request asks of `model`, whose defaults it gets for what it leaves out.

    Raises RequestError (out_of_bounds, invalid_request).
    """
    defaults = model.defaults
    parameters = Parameters(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=defaults.width if request.width is None else request.width,
        height=defaults.height if request.height is None else request.height,
        steps=defaults.steps if request.steps is None else request.steps,
        cfg_scale=defaults.cfg_scale if request.cfg_scale is None else request.cfg_scale,
        seed=_random_seed() if request.seed is None else request.seed,
        scheduler=defaults.scheduler if request.scheduler is None else request.scheduler,
        images=request.images,
    )
    task = TextToImage(
        parameters=parameters,
        format=request.format,
        preview_every=request.preview_every,
        deliver=request.deliver,
    )
    check_bounds(task, model)
    return task


def task_of_version_1(request: version1.Request, model: ModelOffer) -> Task:
    """What a version 1 request asks of `model`: one raw image. Raises RequestError (out_of_bounds, invalid_request)."""
    parameters = Parameters(
        prompt=request.prompts[0],
        negative_prompt="",
        width=request.width,
        height=request.height,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        seed=request.seed or _random_seed(),
        scheduler=model.defaults.scheduler,
        images=1,
        encoder_prompts=request.prompts if len(set(request.prompts)) > 1 else (),
    )
    task = TextToImage(parameters=parameters, format="raw")
    check_bounds(task, model)
    return task


def check_bounds(task: Task, model: ModelOffer) -> None:
    """The broker's check; the worker makes its own. Raises RequestError (out_of_bounds, invalid_request)."""
    check_task(task, model.bounds, model.schedulers)


def _random_seed() -> int:
    return secrets.randbelow(_RANDOM_SEEDS)
