"""What goes into gpu-kit/ beside our source and the libraries: the launcher, and a stand-in for python-prctl.

Standard library only. scripts/make_gpu_kit.py makes the kit; docs/operations.md, "Prove it on your GPU".
"""
