"""The broker's allow list of system calls: it uses the descriptors that it has, and accepts connections.

Each line says what the broker needs the call for. To add one, see CONTRIBUTING.md.
"""

import errno
import fcntl
import mmap
import os
import socket
import termios

from weave.protocol.channel import ALL_SEALS
from weave.sandbox.seccomp import WHOLE, Call, Condition, Refusal, only

# asm-generic/socket.h, linux/mman.h, linux/futex.h
_SO_PROTOCOL, _SO_PEERGROUPS = 38, 59
_MAP_NORESERVE, _MREMAP_MAYMOVE = 0x4000, 1
_FUTEX_WAIT, _FUTEX_WAKE, _FUTEX_WAIT_BITSET, _FUTEX_PRIVATE, _FUTEX_CLOCK_REALTIME = 0, 1, 9, 128, 256
_STANDARD_ERROR = 2
_SOCKET_OPTIONS = (
    (socket.SO_PEERCRED, "the UID of an accepted client"),
    (_SO_PEERGROUPS, "the groups of an accepted client"),
    (socket.SO_TYPE, "Python, for a socket from a descriptor"),
    (_SO_PROTOCOL, "Python, for a socket from a descriptor"),
)
_NOT_EXECUTABLE = only(2, mmap.PROT_READ | mmap.PROT_WRITE)

CALLS: tuple[Call | Refusal, ...] = (
    # Sockets and channels
    Call("accept4", "a new client", (Condition(3, socket.SOCK_CLOEXEC),)),
    *(
        Call("getsockopt", reason, (Condition(1, socket.SOL_SOCKET), Condition(2, option)))
        for option, reason in _SOCKET_OPTIONS
    ),
    Call("getsockname", "Python's accept(), for the address family"),
    Call("recvmsg", "clients' bytes, channels' messages", (only(2, socket.MSG_CMSG_CLOEXEC),)),
    Call("recvfrom", "the event loop's own wake-up socket", (Condition(3, 0),)),
    Call("sendmsg", "events to clients, messages on channels", (only(2, socket.MSG_NOSIGNAL),)),
    # Without an address: only to the connected peer
    Call("sendto", "the event loop's own wake-up socket", (Condition(3, 0), Condition(4, 0, WHOLE))),
    Call("sendto", "an error to a client over the limit", (Condition(3, socket.MSG_NOSIGNAL), Condition(4, 0, WHOLE))),
    Call("sendfile", "image bytes from a sealed memfd to a client"),
    Call("close", "connections, memfds, channels"),
    Call("poll", "whether a line of the log fits into the pipe"),
    Call("epoll_wait", "the event loop"),
    Call("epoll_pwait", "the event loop, on arm64"),
    Call("epoll_ctl", "the event loop"),
    Call("fcntl", "checking the seals of a memfd", (Condition(1, fcntl.F_GET_SEALS),)),
    Call("fcntl", "sealing a client's image", (Condition(1, fcntl.F_ADD_SEALS), Condition(2, ALL_SEALS))),
    Call("memfd_create", "a client's image", (Condition(1, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING),)),
    # Works only on files with offsets, and the only such files that the broker has are memfds.
    Call("pwrite64", "a client's image"),
    Call("ioctl", "non-blocking mode of accepted sockets", (Condition(1, termios.FIONBIO),)),
    Call("lseek", "the size of a memfd", (Condition(2, os.SEEK_END),)),
    Call("pread64", "a new config in a sealed memfd"),
    Call("write", "the log", (Condition(0, _STANDARD_ERROR),)),
    # Memory: private, anonymous, never executable, at an address that the kernel chooses
    Call("brk", "malloc"),
    Call("mmap", "malloc", (_NOT_EXECUTABLE, only(3, _MAP_NORESERVE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))),
    Call("mprotect", "malloc", (_NOT_EXECUTABLE,)),
    Call("mremap", "realloc", (Condition(3, _MREMAP_MAYMOVE),)),
    Call("munmap", "free"),
    Call("madvise", "malloc, returning pages", (Condition(2, mmap.MADV_DONTNEED),)),
    # Time, randomness, exit
    Call("clock_gettime", "where the vDSO cannot answer"),
    Call("gettimeofday", "where the vDSO cannot answer"),
    Call("getrandom", "random seeds"),
    Call("getpid", "random number generators check for a fork"),
    # Within the process, without priority inheritance (PI)
    Call("futex", "Python's interpreter lock", (Condition(1, _FUTEX_WAIT | _FUTEX_PRIVATE),)),
    Call("futex", "Python's interpreter lock", (Condition(1, _FUTEX_WAKE | _FUTEX_PRIVATE),)),
    Call(
        "futex",
        "Python's interpreter lock, with a deadline",
        (only(1, _FUTEX_CLOCK_REALTIME, _FUTEX_WAIT_BITSET | _FUTEX_PRIVATE),),
    ),
    Call("rt_sigreturn", "return from a signal handler"),
    Call("rt_sigprocmask", "malloc and exit block signals"),
    Call("rt_sigaction", "Python's exit restores signal handlers"),
    Call("sigaltstack", "Python's exit frees the fault handler's stack"),
    Call("restart_syscall", "made by the kernel, after SIGSTOP and SIGCONT"),
    Call("exit", "thread exit"),
    Call("exit_group", "process exit"),
    # A traceback looks for source lines, a late import for modules; both can do without.
    Refusal("openat", errno.EACCES, "source lines for a traceback"),
    Refusal("newfstatat", errno.EACCES, "source lines for a traceback"),
    Refusal("stat", errno.EACCES, "source lines for a traceback"),
    Refusal("readlink", errno.EACCES, "source lines for a traceback"),
    Refusal("getcwd", errno.EACCES, "source lines for a traceback"),
    Refusal("getpeername", errno.ENOTCONN, "a socket in a traceback"),
)
