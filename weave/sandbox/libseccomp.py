"""pyseccomp, imported without starting another program.

It looks for its library by ctypes.util.find_library, which runs ldconfig, gcc and ld. Our processes execute nothing
but each other, and the loader knows the names by itself.
"""

import ctypes.util
from typing import Any

_SONAMES = {"c": "libc.so.6", "seccomp": "libseccomp.so.2"}


def load() -> Any:
    """Raises OSError where libseccomp is not installed."""
    find_library = ctypes.util.find_library
    ctypes.util.find_library = _SONAMES.get  # type: ignore[assignment]
    try:
        import pyseccomp
    finally:
        ctypes.util.find_library = find_library
    return pyseccomp
