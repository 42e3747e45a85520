"""How an image was generated, in the format of AUTOMATIC1111's web UI, which many tools read: the prompt, the negative
prompt, and a last line of fields. weavectl reads such texts (weavectl/infotext.py)."""

import json
from typing import Any

from weave.protocol.parameters import Parameters

# The name of this text in a PNG.
INFOTEXT = "parameters"
SAMPLERS = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "unipc": "UniPC",
    "pndm": "PLMS",
    "lcm": "LCM",
    "tcd": "TCD",
    "edm_euler": "Euler",
    "edm_dpmpp_2m": "DPM++ 2M",
    "flow_euler": "Euler",
    "flow_heun": "Heun",
}
SCHEDULES = {"karras": "Karras", "exponential": "Exponential"}


def infotext(parameters: Parameters, *, model: str, seed: int, version: str) -> str:
    """`seed` is the image's own. The format cannot express everything; the PNG's other texts do."""
    loras = [f"<lora:{lora.id}:{_number(lora.weight)}>" for lora in parameters.loras]
    lines = [" ".join([parameters.prompt, *loras])]
    if parameters.negative_prompt:
        lines.append(f"Negative prompt: {parameters.negative_prompt}")
    fields = _fields(parameters) | {"Seed": seed, "Size": f"{parameters.width}x{parameters.height}", "Model": model}
    fields |= _fields_of_images(parameters) | {"Version": f"weave-compute {version}"}
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items()))
    return "\n".join(lines)


def sampler_of(scheduler: str) -> tuple[str, str | None]:
    """The web UI's names of the sampler and, if it says so, of the noise levels' schedule."""
    base, _, spacing = scheduler.rpartition("_")
    if spacing in SCHEDULES:
        return SAMPLERS.get(base, base), SCHEDULES[spacing]
    return SAMPLERS.get(scheduler, scheduler), None


def _fields(parameters: Parameters) -> dict[str, Any]:
    sampler, schedule = sampler_of(parameters.scheduler)
    schedules = {"Schedule type": schedule} if schedule else {}
    return {"Steps": parameters.steps, "Sampler": sampler} | schedules | {"CFG scale": _number(parameters.cfg_scale)}


def _fields_of_images(parameters: Parameters) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if parameters.image is not None:
        fields["Denoising strength"] = _number(parameters.strength)
    elif parameters.enlarge is not None:
        fields["Denoising strength"] = _number(parameters.enlarge.strength)
    if parameters.enlarge is not None:
        fields |= {"Hires upscale": _number(parameters.enlarge.scale), "Hires upscaler": "Lanczos"}
    if parameters.mask_padding is not None:
        fields |= {"Inpaint area": "Only masked", "Masked area padding": parameters.mask_padding}
    return fields


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(character in text for character in ',:\n"') else text
