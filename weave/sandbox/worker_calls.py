"""All that a GPU worker may still ask of the kernel: files that Landlock leaves it, memory, threads, its channels.

The CPU's list was found by running every family of models under it; the GPU's calls follow the list in gVisor's
nvproxy, and have not run on a GPU (docs/security.md, "Not tested"). To add a call, see CONTRIBUTING.md.
"""

import errno
import fcntl
import os
import termios

from weave.sandbox.seccomp import Call, Condition, Refusal, allows

# linux/sched.h, linux/prctl.h
_CLONE_THREAD = 0x00010000
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
_FCNTL_COMMANDS = (
    *(fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC),
    *(fcntl.F_ADD_SEALS, fcntl.F_GET_SEALS),
)
_FUTEX_REASON = "locks of Python, OpenMP and CUDA"

_COMMON: tuple[Call | Refusal, ...] = (
    # Its two channels
    Call("recvmsg", "jobs from the broker"),
    Call("sendmsg", "events and images to the broker"),
    Call("poll", "is there a cancel? between two steps"),
    # Files: which ones is Landlock's to say; this list refuses whatever makes, changes or removes one
    Call("openat", "model files, modules, libraries", (Condition(2, 0, os.O_CREAT | os.O_TRUNC),)),
    Refusal("openat", errno.EACCES, "caches", (Condition(2, os.O_CREAT, os.O_CREAT),)),
    Refusal("openat", errno.EACCES, "caches", (Condition(2, os.O_TRUNC, os.O_TRUNC),)),
    Call("read", "model files, modules"),
    Call("pread64", "model files, libraries"),
    Call("readv", "model files"),
    Call("lseek", "model files, modules"),
    Call("close", "model files, modules, memfds"),
    Call("fstat", "sizes of files"),
    Call("newfstatat", "sizes of files, is there such a module"),
    Call("stat", "is there such a file"),
    Call("lstat", "is there such a file"),
    Call("statx", "sizes of files"),
    Call("statfs", "is this a huge page file system"),
    Call("access", "is there such a file"),
    Call("faccessat", "is there such a file"),
    Call("faccessat2", "is there such a file"),
    Call("readlink", "real path of a module"),
    Call("readlinkat", "real path of a module"),
    Call("getdents64", "modules of a package, files of a model"),
    Call("getcwd", "relative names in tracebacks"),
    # Not F_SETOWN and F_SETSIG, by which a file can be made to signal another process
    *(Call("fcntl", "flags of files, seals of images", (Condition(1, command),)) for command in _FCNTL_COMMANDS),
    Call("dup", "files that are mapped"),
    Call("memfd_create", "images"),
    Call("ftruncate", "images"),
    Call("write", "images in memfds; the log, on standard error"),
    Call("fadvise64", "read model files ahead"),
    # Memory: oneDNN and CUDA make code at run time, so executable mappings stay
    Call("brk", "malloc"),
    Call("mmap", "tensors, model files, libraries"),
    Call("mprotect", "malloc, libraries, code made by oneDNN"),
    Call("mremap", "realloc"),
    Call("munmap", "free"),
    Call("madvise", "huge pages, giving pages back"),
    Call("msync", "mapped model files"),
    Call("mlock", "pinned memory"),
    Call("munlock", "pinned memory"),
    Call("get_mempolicy", "memory nodes"),
    # Threads, and no process: clone3 hides its flags in memory, where no filter can look
    Call("clone", "threads", (Condition(0, _CLONE_THREAD, _CLONE_THREAD),)),
    Refusal("clone3", errno.ENOSYS, "glibc then uses clone"),
    Call("set_robust_list", "new threads"),
    Call("rseq", "new threads"),
    Call("set_tid_address", "new threads"),
    Call("prctl", "names of threads", (Condition(0, _PR_SET_NAME),)),
    Call("prctl", "names of threads", (Condition(0, _PR_GET_NAME),)),
    Refusal("prctl", errno.EINVAL, "glibc names its memory where it can", (Condition(0, _PR_SET_VMA),)),
    Call("futex", _FUTEX_REASON),
    Call("sched_yield", _FUTEX_REASON),
    Call("sched_getaffinity", "how many cores are there"),
    Refusal("sched_setaffinity", errno.EPERM, "pinning threads is an optimisation"),
    Call("getcpu", "memory near the core"),
    # Time, randomness, identity, ending
    Call("clock_gettime", "where the vDSO cannot answer"),
    Call("clock_getres", "timers"),
    Call("clock_nanosleep", "waiting for the device"),
    Call("nanosleep", "waiting for the device"),
    Call("gettimeofday", "where the vDSO cannot answer"),
    Call("getrandom", "hash seeds"),
    Call("getpid", "random number generators ask whether they were forked"),
    Call("gettid", "locks"),
    Call("getuid", "file names of caches, never opened"),
    Call("geteuid", "file names of caches, never opened"),
    Call("getgid", "as getuid"),
    Call("getegid", "as getuid"),
    Call("getrusage", "memory in use"),
    Call("sysinfo", "memory in all"),
    Call("uname", "which processor is this"),
    Call("prlimit64", "size of stacks", (Condition(2, 0),)),
    Call("rt_sigreturn", "the end of a signal handler"),
    Call("rt_sigprocmask", "new threads"),
    Call("rt_sigaction", "Python's and CUDA's handlers"),
    Call("sigaltstack", "stacks of handlers"),
    Call("restart_syscall", "the kernel's own, after SIGSTOP and SIGCONT"),
    Call("exit", "a thread's end"),
    Call("exit_group", "the end"),
    # What libraries try, and do without
    Refusal("ioctl", errno.ENOTTY, "is this file a terminal", (Condition(1, termios.TCGETS),)),
    Refusal("ioctl", errno.ENOTTY, "how wide is the terminal", (Condition(1, termios.TIOCGWINSZ),)),
    Refusal("mkdir", errno.EACCES, "caches"),
    Refusal("unlink", errno.EACCES, "caches"),
    Refusal("mbind", errno.EPERM, "memory nodes"),
    Refusal("kcmp", errno.EPERM, "are two files of a driver the same"),
)

# ioctl(2) numbers: 'F' is NVIDIA's, 'd' DRM's, 'K' KFD's; UVM uses small raw numbers and two large ones.
_TYPE_MASK = 0xFF00
_GPU: tuple[Call | Refusal, ...] = (
    Call("ioctl", "NVIDIA's driver", (Condition(1, ord("F") << 8, _TYPE_MASK),)),
    Call("ioctl", "DRM, for ROCm", (Condition(1, ord("d") << 8, _TYPE_MASK),)),
    Call("ioctl", "KFD, for ROCm", (Condition(1, ord("K") << 8, _TYPE_MASK),)),
    Call("ioctl", "NVIDIA's unified memory", (Condition(1, 0, 0xFFFF_FF00),)),
    Call("ioctl", "NVIDIA's unified memory, its start", (Condition(1, 0x30000001),)),
    Call("ioctl", "NVIDIA's unified memory, its end", (Condition(1, 0x30000002),)),
    Call("epoll_wait", "CUDA's event thread"),
    Call("epoll_ctl", "CUDA's event thread"),
    Call("ppoll", "CUDA's event thread"),
    Call("eventfd2", "CUDA's event thread"),
    Call("pipe2", "CUDA's event thread"),
)


def calls(pid: int, *, gpu: bool) -> tuple[Call | Refusal, ...]:
    """The list for the worker that is process `pid`: it may signal nobody but itself, as abort(3) does."""
    own = Call("tgkill", "abort", (Condition(0, pid),))
    return (*_COMMON, own, *(_GPU if gpu else ()))


def recording(pid: int, *, gpu: bool) -> tuple[Call | Refusal, ...]:
    """The list in record mode: it allows no ioctl, so that the supervisor hears of every one but the refused."""
    return tuple(call for call in calls(pid, gpu=gpu) if isinstance(call, Refusal) or call.name != "ioctl")


def lists_ioctl(arguments: tuple[int, ...]) -> bool:
    """Whether a worker with a GPU may make this ioctl outside record mode."""
    return allows(calls(0, gpu=True), "ioctl", arguments)
