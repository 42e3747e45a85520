"""The parts of gpu-kit/ that are neither our source nor libraries: the launcher, and a stand-in for python-prctl.

Standard library only. scripts/make_gpu_kit.py builds the kit; docs/operations.md, "Prove it on your GPU".
"""
