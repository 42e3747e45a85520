"""How much of a prompt the text encoders get: what is beyond their tokens is cut by the pipeline, silently."""

from typing import Any

from weave.gpu_worker.families import FAMILIES, T5_TOKENS
from weave.protocol.client_messages import EncoderTokens, Tokens

_SUFFIXES = ("", "_2", "_3")


def count_tokens(pipeline: Any, name: str, arguments: dict[str, Any]) -> Tokens:
    """`arguments` are those of the call that the pipeline has just done."""
    guided = arguments.get("true_cfg_scale", 1.0) > 1 if name == "flux" else pipeline.do_classifier_free_guidance
    return Tokens(
        prompt=_count(pipeline, name, arguments, "prompt"),
        # Without guidance it is not encoded at all.
        negative_prompt=_count(pipeline, name, arguments, "negative_prompt") if guided else (),
    )


def _count(pipeline: Any, name: str, arguments: dict[str, Any], kind: str) -> tuple[EncoderTokens, ...]:
    found = []
    for suffix in _SUFFIXES:
        text, encoder = arguments.get(kind + suffix), f"text_encoder{suffix}"
        if text is None or getattr(pipeline, encoder) is None:
            continue
        tokenizer = getattr(pipeline, f"tokenizer{suffix}")
        limit = getattr(pipeline, "tokenizer_max_length", tokenizer.model_max_length)
        if FAMILIES[name].components[encoder][1] == "T5EncoderModel":
            limit = T5_TOKENS[name]
        if hasattr(pipeline, "maybe_convert_prompt"):
            text = pipeline.maybe_convert_prompt(text, tokenizer)
        used = len(tokenizer(text, truncation=True, max_length=limit).input_ids)
        cut = len(tokenizer(text).input_ids) - used
        found.append(EncoderTokens(encoder=encoder, used=used, cut=cut))
    return tuple(found)
