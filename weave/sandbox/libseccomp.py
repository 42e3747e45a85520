"""Imports pyseccomp without starting other programs.

It finds its library with ctypes.util.find_library, which runs ldconfig, gcc and ld. We execute nothing but our own
processes, and the dynamic loader finds a library by its soname alone.
"""

import ctypes.util
from typing import Any

_SONAMES = {"c": "libc.so.6", "seccomp": "libseccomp.so.2"}


def load() -> Any:
    """Raises OSError if libseccomp is not installed."""
    find_library = ctypes.util.find_library
    ctypes.util.find_library = _SONAMES.get  # type: ignore[assignment]
    try:
        import pyseccomp
    finally:
        ctypes.util.find_library = find_library
    return pyseccomp
