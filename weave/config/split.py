"""Splits a config into what each child needs of it."""

from typing import Literal

from weave.config.child_configs import (
    Access,
    BrokerConfig,
    WorkerConfig,
    WorkerControl,
    WorkerEmbedding,
    WorkerLora,
    WorkerModel,
)
from weave.config.devices import device_names
from weave.config.offers import control_offers, embedding_offers, lora_offers, offers
from weave.config.schema import Config


def broker_config(config: Config, *, mode: Literal["user", "system", "attached"], access: Access) -> BrokerConfig:
    """The broker's part. Raises ConfigError."""
    models = offers(config)
    return BrokerConfig(
        mode=mode,
        devices=device_names(config.device),
        models=models,
        default_model=config.default_model or (models[0].id if models else None),
        loras=lora_offers(config),
        embeddings=embedding_offers(config),
        controls=control_offers(config),
        limits=config.limits,
        access=access,
        audit_prompts=config.audit.prompts,
        deliver_fds=mode != "system" or config.system.deliver_fds,
        isolate_users=mode == "system" and config.system.isolate_users,
    )


def worker_config(config: Config) -> WorkerConfig:
    """The zygote's part. Raises ConfigError."""
    loras = tuple(
        WorkerLora(offer=offer, path=lora.path, sha256=lora.sha256)
        for offer, lora in zip(lora_offers(config), config.loras.values(), strict=True)
    )
    embeddings = tuple(
        WorkerEmbedding(offer=offer, path=embedding.path, sha256=embedding.sha256)
        for offer, embedding in zip(embedding_offers(config), config.embeddings.values(), strict=True)
    )
    controls = tuple(
        WorkerControl(offer=offer, path=control.path, sha256=control.sha256)
        for offer, control in zip(control_offers(config), config.controls.values(), strict=True)
    )
    return WorkerConfig(
        device=config.device,
        models=tuple(
            WorkerModel(
                offer=offer,
                path=model.path,
                layout=model.layout,
                parts=model.parts,
                sha256=model.sha256,
                memory=model.memory,
                weights=model.weights,
                loras=tuple(lora for lora in loras if lora.offer.family == offer.family),
                embeddings=tuple(it for it in embeddings if it.offer.family == offer.family),
                controls=tuple(it for it in controls if it.offer.family == offer.family),
            )
            for offer, model in zip(offers(config), config.models.values(), strict=True)
        ),
    )
