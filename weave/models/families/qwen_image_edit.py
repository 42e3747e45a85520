"""Qwen-Image-Edit: Qwen-Image's components, and a processor, since Qwen2.5-VL also sees the reference images."""

from collections.abc import Iterator
from functools import partial

from msgspec import structs

from weave.models.families.qwen_image import ACTIVATIONS, FILE, TRANSFORMER, common_sizes
from weave.models.family import Family, bounds, defaults
from weave.models.qwen import EDIT, QWEN2_5_VL, QWEN_TOKENIZER, QWEN_VAE
from weave.models.qwen_vision import QWEN_PROCESSOR, vision_faults
from weave.models.sizes import Configs, Expected
from weave.protocol.inputs import MAX_REFERENCES, REFERENCES

# The transformer has rotary embeddings for 4096 positions: for half a side of the largest image, for the prompt, and
# for the images that Qwen2.5-VL sees.
_TOKENS_OF_IMAGES = 2600


def _sizes(configs: Configs, *, pixels: int, references: int, unsupported: tuple[str, ...]) -> Iterator[Expected | str]:
    yield from common_sizes(configs, unsupported=unsupported)
    yield from vision_faults(configs, pixels=pixels, most_tokens=_TOKENS_OF_IMAGES // references)


def _family(name: str, pipeline: str, *, pixels: int, references: int, unsupported: tuple[str, ...] = ()) -> Family:
    """`pixels` is the size of the images that the pipeline gives to Qwen2.5-VL, `references` how many it takes."""
    return Family(
        name=name,
        bounds=bounds(
            largest_side=2048, multiple=16, prompt_characters=4000, least_references=1, references=references
        ),
        defaults=defaults(side=1024, steps=50, cfg_scale=4.0, scheduler="flow_euler"),
        schedulers=("flow_euler",),
        pipeline=pipeline,
        pipelines={REFERENCES: pipeline},
        components={
            "tokenizer": QWEN_TOKENIZER,
            "processor": QWEN_PROCESSOR,
            "text_encoder": QWEN2_5_VL,
            "transformer": TRANSFORMER,
            "vae": QWEN_VAE,
        },
        activations=structs.replace(ACTIVATIONS, least_reference=1024 * 1024),
        sizes=partial(_sizes, pixels=pixels, references=references, unsupported=unsupported),
        single_file=FILE,
        # The largest that the pipeline takes.
        max_sequence_length=1024,
        prompt_template=EDIT,
        free_tokens=64,
        adapter="qwen_image_edit",
    )


FAMILIES = (
    _family(
        "qwen-image-edit",
        "QwenImageEditPipeline",
        pixels=1024 * 1024,
        references=1,
        unsupported=("zero_cond_t",),
    ),
    # Edit-2509 and later.
    _family(
        "qwen-image-edit-plus",
        "QwenImageEditPlusPipeline",
        pixels=384 * 384,
        references=MAX_REFERENCES,
    ),
)
