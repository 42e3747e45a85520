"""Splits a config into what each child needs of it."""

from typing import Literal

from weave.config.child_configs import Access, BrokerConfig, WorkerConfig, WorkerModel
from weave.config.offers import offers
from weave.config.schema import Config


def broker_config(config: Config, *, mode: Literal["user", "system", "attached"], access: Access) -> BrokerConfig:
    """The broker's part. Raises ConfigError."""
    models = offers(config)
    return BrokerConfig(
        mode=mode,
        models=models,
        default_model=config.default_model or (models[0].id if models else None),
        limits=config.limits,
        access=access,
        audit_prompts=config.audit.prompts,
        deliver_fds=mode != "system" or config.system.deliver_fds,
        isolate_users=mode == "system" and config.system.isolate_users,
    )


def worker_config(config: Config) -> WorkerConfig:
    """The zygote's part. Raises ConfigError."""
    return WorkerConfig(
        device=config.device,
        models=tuple(
            WorkerModel(offer=offer, path=model.path, layout=model.layout, parts=model.parts, sha256=model.sha256)
            for offer, model in zip(offers(config), config.models.values(), strict=True)
        ),
    )
