"""The environment of the zygote and of every worker forked from it.

It must be set before torch, diffusers or transformers are imported: most of these are read once, at import. They are
the outer layer only; that a worker has no network is enforced by its sandbox (docs/threat-model.md).
"""

import os

OFFLINE_ENVIRONMENT: dict[str, str] = {
    # huggingface_hub/constants.py: every request of the Hub client raises OfflineModeIsEnabled instead.
    "HF_HUB_OFFLINE": "1",
    # The same switch under the name transformers documents; huggingface_hub reads either.
    "TRANSFORMERS_OFFLINE": "1",
    # diffusers/utils/constants.py: no custom pipeline and no trust_remote_code, even for a caller that asks. It also
    # wins over DIFFUSERS_TRUST_REMOTE_KERNELS.
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    # huggingface_hub/constants.py: no telemetry, no look for a newer version, no token sent unasked.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    # torch/_inductor makes a folder of its own at import, where it may write none: one that is there already.
    "TORCHINDUCTOR_CACHE_DIR": "/",
    # transformers/core_model_loading.py starts a thread pool for each load; a worker loads in its own thread.
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    # No bars on stderr, which is the log; a tqdm bar also makes a multiprocessing lock (a file in /dev/shm).
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Their warnings are for authors of notebooks; errors still reach us as exceptions.
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    # numpy's OpenBLAS starts its threads at import, and a process that forks must have one only (pthread_atfork(3)).
    "OPENBLAS_NUM_THREADS": "1",
    # OpenMP's threads wait asleep instead of spinning: 100 times faster where the cores are busy with other things.
    "OMP_WAIT_POLICY": "PASSIVE",
    # The Rust tokenizers would start a pool for a batch of prompts, after lockdown.
    "TOKENIZERS_PARALLELISM": "false",
    # torch/cuda/__init__.py: is_available() asks NVML instead of cuInit, after which a forked child cannot use CUDA.
    # Libraries ask it when they are imported.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # CUDA loads a kernel when it is first used, and that reads a file and maps memory: have it all before lockdown.
    # https://docs.nvidia.com/cuda/cuda-programming-guide/ (CUDA_MODULE_LOADING)
    "CUDA_MODULE_LOADING": "EAGER",
    # Compiled kernels would be cached under the home folder, which the worker cannot see.
    "CUDA_CACHE_DISABLE": "1",
    # Without ptxas or a writable folder a torch.compile or Triton kernel could only fail late: never try.
    "TORCHDYNAMO_DISABLE": "1",
    # No .pyc is ever written: the Python tree is read-only to the worker.
    "PYTHONDONTWRITEBYTECODE": "1",
}


def apply() -> None:
    """Set all of it for this process and what it forks. To be called before torch is imported."""
    os.environ.update(OFFLINE_ENVIRONMENT)
