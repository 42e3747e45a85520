"""All that the broker may still ask of the kernel: it talks on descriptors that it has, and takes new connections.

To add a call, see CONTRIBUTING.md: each line says why the broker cannot do without it.
"""

import errno
import fcntl
import mmap
import termios

from weave.sandbox.seccomp import Call, Condition, Refusal

_NOT_EXECUTABLE = (Condition(argument=2, value=0, mask=mmap.PROT_EXEC),)

CALLS: tuple[Call | Refusal, ...] = (
    # Talking
    Call("accept4", "a new client"),
    Call("getsockopt", "SO_PEERCRED of the client just accepted"),
    Call("getsockname", "Python's accept asks for the family of the new socket"),
    Call("recvmsg", "clients' bytes, channels' messages"),
    Call("recvfrom", "the event loop's own wake-up socket"),
    Call("sendmsg", "events to clients, messages on channels"),
    Call("sendto", "the event loop's own wake-up socket"),
    Call("sendfile", "image bytes from a sealed memfd to a client"),
    Call("close", "connections, memfds, channels"),
    Call("poll", "is there room for a line of the log"),
    Call("epoll_wait", "the event loop"),
    Call("epoll_pwait", "the event loop, on arm64"),
    Call("epoll_ctl", "the event loop"),
    Call("fcntl", "seals of a memfd", (Condition(argument=1, value=fcntl.F_GET_SEALS),)),
    Call("ioctl", "non-blocking mode of accepted sockets", (Condition(argument=1, value=termios.FIONBIO),)),
    Call("lseek", "size of a memfd"),
    Call("pread64", "a new config in a sealed memfd"),
    Call("write", "the log, on standard error"),
    # Memory; never executable
    Call("brk", "malloc"),
    Call("mmap", "malloc", _NOT_EXECUTABLE),
    Call("mprotect", "malloc", _NOT_EXECUTABLE),
    Call("mremap", "realloc"),
    Call("munmap", "free"),
    Call("madvise", "malloc gives pages back"),
    # Time, randomness, ending
    Call("clock_gettime", "where the vDSO cannot answer"),
    Call("gettimeofday", "where the vDSO cannot answer"),
    Call("getrandom", "random seeds"),
    Call("getpid", "random number generators ask whether they were forked"),
    Call("futex", "Python's interpreter lock"),
    Call("rt_sigreturn", "the end of a signal handler"),
    Call("rt_sigprocmask", "malloc and exit block signals"),
    Call("rt_sigaction", "Python's exit restores signal handlers"),
    Call("sigaltstack", "Python's exit frees the fault handler's stack"),
    Call("restart_syscall", "the kernel's own, after SIGSTOP and SIGCONT"),
    Call("exit", "a thread's end"),
    Call("exit_group", "the end"),
    # A traceback looks for source lines, a late import for modules: both do without.
    Refusal("openat", errno.EACCES, "source lines for a traceback"),
    Refusal("newfstatat", errno.EACCES, "source lines for a traceback"),
    Refusal("stat", errno.EACCES, "source lines for a traceback"),
    Refusal("readlink", errno.EACCES, "source lines for a traceback"),
    Refusal("getcwd", errno.EACCES, "source lines for a traceback"),
    Refusal("getpeername", errno.ENOTCONN, "a socket in a traceback"),
)
