"""The environment of the zygote and of every worker forked from it.

It must be set before torch, diffusers or transformers are imported: most variables are read once, at import. They are
only the outer layer; the sandbox is what keeps a worker off the network (docs/threat-model.md).
"""

import os

OFFLINE_ENVIRONMENT: dict[str, str] = {
    # huggingface_hub/constants.py: every request of the Hub client raises OfflineModeIsEnabled instead.
    "HF_HUB_OFFLINE": "1",
    # The same switch under the name that transformers documents; huggingface_hub reads either.
    "TRANSFORMERS_OFFLINE": "1",
    # diffusers/utils/constants.py: no custom pipeline and no trust_remote_code, even if a caller requests it. It also
    # overrides DIFFUSERS_TRUST_REMOTE_KERNELS.
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    # huggingface_hub/constants.py: no telemetry, no check for a newer version, no token sent by default.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    # torch/_inductor creates a cache folder at import, which the sandbox forbids: name one that exists.
    "TORCHINDUCTOR_CACHE_DIR": "/",
    # transformers/core_model_loading.py starts a thread pool for each load; a locked-down worker can start no thread.
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    # No progress bars on stderr, which is the log; a tqdm bar also creates a multiprocessing lock (a file in /dev/shm).
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Their warnings are for interactive users; errors still arrive as exceptions.
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    # numpy's OpenBLAS starts its threads at import, and a process that forks must have only one (pthread_atfork(3)).
    "OPENBLAS_NUM_THREADS": "1",
    # OpenMP's threads sleep while they wait instead of spinning: 100 times faster on busy cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # The Rust tokenizers would start a thread pool for a batch of prompts, after lock_down().
    "TOKENIZERS_PARALLELISM": "false",
    # torch/cuda/__init__.py: is_available() queries NVML instead of calling cuInit, after which a forked child cannot
    # use CUDA. Libraries call is_available() at import.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # By default CUDA loads a kernel at its first use, which reads a file and maps memory: load all before lock_down().
    # https://docs.nvidia.com/cuda/cuda-programming-guide/ (CUDA_MODULE_LOADING)
    "CUDA_MODULE_LOADING": "EAGER",
    # The cache of compiled kernels is in the home folder, which the worker cannot access.
    "CUDA_CACHE_DISABLE": "1",
    # Without ptxas and a writable folder a torch.compile or Triton kernel would fail in the middle of a job.
    "TORCHDYNAMO_DISABLE": "1",
    # Write no .pyc files: the Python tree is read-only to the worker.
    "PYTHONDONTWRITEBYTECODE": "1",
}


def apply() -> None:
    """Set the variables for this process and its children. Call it before torch is imported."""
    os.environ.update(OFFLINE_ENVIRONMENT)
