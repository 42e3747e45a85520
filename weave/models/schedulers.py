"""The schedulers: the name in the protocol, the class in diffusers, and the rules for their configs."""

from typing import Literal, NamedTuple

from weave.models.configs import rules


class Scheduler(NamedTuple):
    """`kind` is how the model was trained: to predict noise or velocity, or by flow matching.

    `predictions` are the values of prediction_type that the class supports; it rejects others only at its first step.
    Flow-matching classes have no such key.
    """

    class_name: str
    kind: Literal["diffusion", "flow"]
    predictions: tuple[str, ...] = ()


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
    "flow_euler": Scheduler("FlowMatchEulerDiscreteScheduler", "flow"),
    "flow_heun": Scheduler("FlowMatchHeunDiscreteScheduler", "flow"),
}
DIFFUSION = tuple(name for name, scheduler in SCHEDULERS.items() if scheduler.kind == "diffusion")
FLOW = tuple(name for name, scheduler in SCHEDULERS.items() if scheduler.kind == "flow")

# Classes that are not offered, but have the same parameters. A model whose config names one gets its family's default
# scheduler, with the numbers of that config.
RELATED = {
    "diffusion": (
        *("DDIMInverseScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler", "DDPMScheduler"),
        *("DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSDEScheduler"),
        *("DPMSolverSinglestepScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
        *("KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "SASolverScheduler", "TCDScheduler"),
    ),
    "flow": ("FlowMatchLCMScheduler",),
}

# One set of rules for all: diffusers creates one class from another's config, and keeps the keys that it does not use.
SCHEDULER_RULES = rules(
    # Keys of classes that are not offered, and of early versions.
    """_name_or_path predict_epsilon solver_p original_inference_steps timestep_scaling sigma_data sigma_schedule rho
        s_noise noise_sampler_seed predictor_order corrector_order tau_func snr_shift_scale scale_factors upscale_mode
        eta clip_denoised tensor_format timestep_values""",
    name="""_class_name beta_schedule prediction_type timestep_spacing interpolation_type timestep_type
        final_sigmas_type algorithm_type solver_type variance_type? time_shift_type""",
    text="_diffusers_version _use_default_values[]",
    size="num_train_timesteps base_image_seq_len max_image_seq_len",
    count="steps_offset solver_order disable_corrector[]",
    fraction="beta_start beta_end trained_betas[]? dynamic_thresholding_ratio",
    number="""clip_sample_range sample_max_value sigma_min? sigma_max? flow_shift shift base_shift max_shift
        shift_terminal?""",
    clip="lambda_min_clipped",
    flag="""clip_sample set_alpha_to_one thresholding rescale_betas_zero_snr use_karras_sigmas use_exponential_sigmas
        use_beta_sigmas use_flow_sigmas use_lu_lambdas lower_order_final euler_at_final skip_prk_steps predict_x0
        use_dynamic_shifting invert_sigmas stochastic_sampling""",
)
