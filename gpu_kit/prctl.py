"""The functions of python-prctl that weave and its tests use, on top of libc.

python-prctl is built from source, with libcap's headers. On a machine that lacks it the kit puts this file where
`import prctl` finds it. tests/unit/test_prctl_stand_in.py compares the two.
"""

import ctypes
import itertools
import os
from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_GET_PDEATHSIG = 2
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39

# linux/capability.h
CAP_KILL = 5
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SETPCAP = 8
_LINUX_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct. PID 0 is the calling thread."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    """struct __user_cap_data_struct: 32 capabilities in each set."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _checked(result: int) -> int:
    """Raises OSError."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _prctl(option: int, argument: int = 0) -> int:
    """prctl(2). The unused arguments must be 0. Raises OSError."""
    unused = [ctypes.c_ulong(0)] * 3
    return _checked(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), *unused))


def set_no_new_privs(value: int) -> None:
    """It can be set, but not cleared."""
    _prctl(_PR_SET_NO_NEW_PRIVS, value)


def get_no_new_privs() -> int:
    """0 or 1."""
    return _prctl(_PR_GET_NO_NEW_PRIVS)


def set_dumpable(value: int) -> None:
    """0 or 1."""
    _prctl(_PR_SET_DUMPABLE, value)


def get_dumpable() -> int:
    """0, 1, or 2 (only root)."""
    return _prctl(_PR_GET_DUMPABLE)


def set_pdeathsig(number: int) -> None:
    """The signal that this process gets when its parent thread exits; 0 for none."""
    _prctl(_PR_SET_PDEATHSIG, number)


def get_pdeathsig() -> int:
    """0 for none."""
    number = ctypes.c_int()
    _checked(_libc.prctl(ctypes.c_int(_PR_GET_PDEATHSIG), ctypes.byref(number)))
    return number.value


class _Set:
    """One of the calling thread's capability sets: effective, permitted or inheritable."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def setpcap(self) -> bool:
        """Whether CAP_SETPCAP is in it."""
        return bool(getattr(_get()[0], self._name) & 1 << CAP_SETPCAP)

    def limit(self, *kept: int) -> None:
        """Drop all but `kept` from it. Adds none. Raises OSError."""
        data = _get()
        for index, part in enumerate(data):
            mask = sum(1 << capability % 32 for capability in kept if capability // 32 == index)
            setattr(part, self._name, getattr(part, self._name) & mask)
        _checked(_libc.capset(ctypes.byref(_header()), data))


class _BoundingSet:
    """The calling thread's bounding set, which only CAP_SETPCAP may change."""

    def limit(self, *kept: int) -> None:
        """Drop all but `kept` from it. Raises OSError."""
        for capability in _known():
            if capability not in kept:
                _prctl(_PR_CAPBSET_DROP, capability)


def _header() -> _Header:
    return _Header(_LINUX_CAPABILITY_VERSION_3, 0)


def _get() -> "ctypes.Array[_Data]":
    """capget(2)."""
    data = (_Data * 2)()
    _checked(_libc.capget(ctypes.byref(_header()), data))
    return data


def _known() -> Iterator[int]:
    """All capabilities of this kernel. Reading the first number beyond them fails."""
    for capability in itertools.count():
        try:
            _prctl(_PR_CAPBSET_READ, capability)
        except OSError:
            return
        yield capability


cap_effective = _Set("effective")
cap_permitted = _Set("permitted")
cap_inheritable = _Set("inheritable")
capbset = _BoundingSet()
