"""Bria 3.2: T5 and a transformer like Flux's. For tests: a family that the product does not have."""

from collections.abc import Iterator

from weave.models import sizes
from weave.models.components import AUTOENCODER_KL, BY_DIFFUSERS, T5_ENCODER, T5_TOKENIZER, ModelClass
from weave.models.configs import rules
from weave.models.family import Activations, Family, bounds, defaults
from weave.models.sizes import Configs, Expected

_TRANSFORMER = ModelClass(
    library="diffusers",
    class_name="BriaTransformer2DModel",
    config=rules(
        BY_DIFFUSERS,
        side="patch_size",
        size="""in_channels attention_head_dim num_attention_heads joint_attention_dim pooled_projection_dim?
            axes_dims_rope[] rope_theta time_theta""",
        count="num_layers num_single_layers",
        flag="guidance_embeds",
    ),
    defaults={"in_channels": 64, "joint_attention_dim": 4096},
)


def _sizes(configs: Configs) -> Iterator[Expected | str]:
    yield from sizes.vae(configs)
    packed = 4 * configs["vae"]["latent_channels"]
    yield Expected("transformer", "in_channels", packed, "4 times the VAE's latent_channels")
    width = configs["text_encoder"]["d_model"]
    yield Expected("transformer", "joint_attention_dim", width, "the text encoder's d_model")


FAMILIES = (
    Family(
        name="bria",
        bounds=bounds(largest_side=2048, multiple=16, prompt_characters=4000),
        defaults=defaults(side=1024, steps=30, cfg_scale=5.0, scheduler="flow_euler"),
        schedulers=("flow_euler",),
        pipeline="BriaPipeline",
        components={
            "tokenizer": T5_TOKENIZER,
            "text_encoder": T5_ENCODER,
            "transformer": _TRANSFORMER,
            "vae": AUTOENCODER_KL,
        },
        activations=Activations(denoiser=500, text=60_000_000, vae=1536),
        sizes=_sizes,
        max_sequence_length=128,
        adapter="bria",
    ),
)
