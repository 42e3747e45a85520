"""The schedulers: the name in the protocol, the class in diffusers, and the rules for their configs."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from weave.models.configs import rules, shown


class Scheduler(NamedTuple):
    """`kind` is how the model was trained: to predict noise or velocity at one of so many timesteps, or at any noise
    level, by EDM (Karras et al. 2022), or by flow matching.

    `predictions` are the values of prediction_type that the class supports; it rejects others only at its first step.
    Flow-matching classes have no such key. `sigmas` is the one of SIGMAS that is set, whatever the model's config says.
    """

    class_name: str
    kind: Literal["diffusion", "edm", "flow"]
    predictions: tuple[str, ...] = ()
    sigmas: str | None = None


# How the noise levels are spaced: keys of the classes' configs, by their names here.
SIGMAS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}

SCHEDULERS = {
    "ddim": Scheduler("DDIMScheduler", "diffusion", ("epsilon", "sample", "v_prediction")),
    "euler": Scheduler("EulerDiscreteScheduler", "diffusion", ("epsilon", "sample", "original_sample", "v_prediction")),
    "euler_a": Scheduler("EulerAncestralDiscreteScheduler", "diffusion", ("epsilon", "v_prediction")),
    "dpmpp_2m": Scheduler(
        "DPMSolverMultistepScheduler", "diffusion", ("epsilon", "sample", "v_prediction", "flow_prediction")
    ),
    "unipc": Scheduler(
        "UniPCMultistepScheduler", "diffusion", ("epsilon", "sample", "v_prediction", "flow_prediction")
    ),
    "pndm": Scheduler("PNDMScheduler", "diffusion", ("epsilon", "v_prediction")),
    "lcm": Scheduler("LCMScheduler", "diffusion", ("epsilon", "sample", "v_prediction")),
    "tcd": Scheduler("TCDScheduler", "diffusion", ("epsilon", "sample", "v_prediction")),
    "edm_euler": Scheduler("EDMEulerScheduler", "edm", ("epsilon", "v_prediction")),
    # It names "sample" too, and fails with it.
    "edm_dpmpp_2m": Scheduler("EDMDPMSolverMultistepScheduler", "edm", ("epsilon", "v_prediction")),
    "flow_euler": Scheduler("FlowMatchEulerDiscreteScheduler", "flow"),
    "flow_heun": Scheduler("FlowMatchHeunDiscreteScheduler", "flow"),
}
# Not beta: it needs scipy.
SCHEDULERS |= {
    f"{name}_{spacing}": SCHEDULERS[name]._replace(sigmas=SIGMAS[spacing])
    for name in ("euler", "dpmpp_2m", "unipc")
    for spacing in ("karras", "exponential")
}
DIFFUSION = tuple(name for name, scheduler in SCHEDULERS.items() if scheduler.kind == "diffusion")
EDM = tuple(name for name, scheduler in SCHEDULERS.items() if scheduler.kind == "edm")
FLOW = tuple(name for name, scheduler in SCHEDULERS.items() if scheduler.kind == "flow")

# Classes that are not offered, but have the same parameters. A model whose config names one gets its family's default
# scheduler, with the numbers of that config.
RELATED = {
    "diffusion": (
        *("DDIMInverseScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler", "DDPMScheduler"),
        *("DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSDEScheduler"),
        *("DPMSolverSinglestepScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
        *("KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "SASolverScheduler"),
    ),
    "flow": ("FlowMatchLCMScheduler",),
}

# One set of rules for all: diffusers creates one class from another's config, and keeps the keys that it does not use.
SCHEDULER_RULES = rules(
    # Keys of classes that are not offered, and of early versions.
    """_name_or_path predict_epsilon solver_p s_noise noise_sampler_seed predictor_order corrector_order tau_func
        snr_shift_scale scale_factors upscale_mode eta clip_denoised tensor_format timestep_values""",
    name="""_class_name beta_schedule prediction_type timestep_spacing interpolation_type timestep_type
        final_sigmas_type algorithm_type solver_type variance_type? time_shift_type""",
    text="_diffusers_version _use_default_values[]",
    size="num_train_timesteps original_inference_steps base_image_seq_len max_image_seq_len",
    count="steps_offset solver_order disable_corrector[]",
    fraction="beta_start beta_end trained_betas[]? dynamic_thresholding_ratio",
    number="""clip_sample_range sample_max_value flow_shift shift base_shift max_shift shift_terminal?
        timestep_scaling""",
    positive="sigma_min? sigma_max? sigma_data rho",
    spacing="sigma_schedule",
    clip="lambda_min_clipped",
    flag="""clip_sample set_alpha_to_one thresholding rescale_betas_zero_snr use_karras_sigmas use_exponential_sigmas
        use_beta_sigmas use_flow_sigmas use_lu_lambdas lower_order_final euler_at_final skip_prk_steps predict_x0
        use_dynamic_shifting invert_sigmas stochastic_sampling""",
)


def name_of(class_name: str) -> str:
    """The plainest name of a class that is offered."""
    return next(name for name, scheduler in SCHEDULERS.items() if scheduler.class_name == class_name)


def misfit(name: str, own: str, config: Mapping[str, Any]) -> str | None:
    """Why the scheduler `name` cannot sample a model whose own scheduler is of the class `own`, with this config; None
    if nothing shows before it runs."""
    wanted, kind = SCHEDULERS[name], SCHEDULERS[name_of(own)].kind
    if wanted.kind != kind:
        fitting = ", ".join(other for other, scheduler in SCHEDULERS.items() if scheduler.kind == kind)
        return f"{wanted.class_name} does not fit the model's {own}: use one of {fitting}"
    prediction = config.get("prediction_type", "epsilon")
    if wanted.predictions and prediction not in wanted.predictions:
        return f"prediction_type is {shown(prediction)}, which {wanted.class_name} does not support"
    lowest, highest = config.get("sigma_min", 0.002), config.get("sigma_max", 80.0)
    if kind == "edm" and (lowest is None or highest is None or lowest >= highest):
        return f"sigma_min is {lowest} and sigma_max {highest}, expected two numbers, the first the smaller one"
    return None
