import os

# torch's is_available(), which libraries ask when they are imported, then asks NVML and does not initialise CUDA: this
# process forks, and takes no VRAM itself.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
