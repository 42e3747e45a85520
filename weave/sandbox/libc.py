"""System calls without a wrapper in Python."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

# asm-generic/unistd.h: the same numbers on every architecture.
SYS_LANDLOCK_CREATE_RULESET = 444
SYS_LANDLOCK_ADD_RULE = 445
SYS_LANDLOCK_RESTRICT_SELF = 446


def syscall(number: int, *arguments: int | ctypes.c_void_p | None) -> int:
    """syscall(2). Raises OSError."""
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
