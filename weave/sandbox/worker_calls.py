"""All that a GPU worker may still ask of the kernel: files that Landlock leaves it, memory, threads, its channels.

The CPU's list was found by running every family of models under it; the GPU's calls follow the list in gVisor's
nvproxy, and have not run on a GPU (docs/threat-model.md, "Not tested"). To add a call, see CONTRIBUTING.md.
"""

import errno
import fcntl
import mmap
import os
import socket
import termios

from weave.sandbox.seccomp import WHOLE, Call, Condition, Refusal, only

# linux/sched.h: what glibc's pthread_create(3) gives: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID
# and CHILD_CLEARTID.
_A_THREAD = 0x003D0F00
# linux/prctl.h
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
_FCNTL_COMMANDS = (
    *(fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC),
    *(fcntl.F_ADD_SEALS, fcntl.F_GET_SEALS),
)
_FUTEX_REASON = "locks of Python, OpenMP and CUDA"
# linux/futex.h: WAIT, WAKE, WAIT_BITSET, WAKE_BITSET, with PRIVATE_FLAG and CLOCK_REALTIME. Not those that lend
# priority (PI) or move waiters (REQUEUE).
_FUTEX_OPERATIONS = (0, 1, 9, 10)
_FUTEX_FLAGS = 128 | 256
# fcntl.h: O_TMPFILE without O_DIRECTORY, which is in it.
_TMPFILE = os.O_TMPFILE & ~os.O_DIRECTORY
_MAKES_OR_EXTENDS = os.O_CREAT | os.O_TRUNC | _TMPFILE
# linux/mman.h: MAP_32BIT, FIXED, ANONYMOUS, DENYWRITE, NORESERVE, POPULATE, STACK, FIXED_NOREPLACE. Not huge pages of
# hugetlbfs, memory that grows, or is locked.
_MAP_FLAGS = 0x40 | 0x10 | 0x20 | 0x800 | 0x4000 | 0x8000 | 0x20000 | 0x100000
_MREMAP_MAYMOVE = 1
# NORMAL to WILLNEED, DONTNEED, FREE, DONTFORK, DOFORK, HUGEPAGE, NOHUGEPAGE, DONTDUMP, DODUMP; and GUARD_INSTALL and
# GUARD_REMOVE, for the stacks of glibc 2.42. Not those that share pages with others (MERGEABLE) or write them out.
_ADVICE = (0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17, 102, 103)

_COMMON: tuple[Call | Refusal, ...] = (
    # Its two channels
    Call("recvmsg", "jobs from the broker", (Condition(2, socket.MSG_CMSG_CLOEXEC),)),
    Call("sendmsg", "events and images to the broker", (Condition(2, socket.MSG_NOSIGNAL),)),
    Call("poll", "is there a cancel? between two steps"),
    # Files: which ones is Landlock's to say; this list refuses whatever makes, changes or removes one
    Call("openat", "model files, modules, libraries", (Condition(2, os.O_RDONLY, os.O_ACCMODE | _MAKES_OR_EXTENDS),)),
    *(
        Refusal("openat", errno.EACCES, "caches", (Condition(2, flag, flag),))
        for flag in (os.O_WRONLY, os.O_CREAT, os.O_TRUNC, _TMPFILE)
    ),
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
    Call("memfd_create", "images", (only(1, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING),)),
    Call("ftruncate", "images"),
    Call("write", "images in memfds; the log, on standard error"),
    Call("fadvise64", "read model files ahead"),
    # Memory: oneDNN and CUDA make code at run time, so executable mappings stay
    Call("brk", "malloc"),
    Call("mmap", "tensors, libraries", (only(3, _MAP_FLAGS, mmap.MAP_PRIVATE),)),
    Call("mmap", "model files", (only(3, _MAP_FLAGS, mmap.MAP_SHARED),)),
    Call(
        "mprotect",
        "malloc, libraries, code made by oneDNN",
        (only(2, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),),
    ),
    Call("mremap", "realloc", (only(3, _MREMAP_MAYMOVE),)),
    Call("munmap", "free"),
    *(Call("madvise", "huge pages, giving pages back", (Condition(2, advice),)) for advice in _ADVICE),
    Call("msync", "mapped model files"),
    Call("mlock", "pinned memory"),
    Call("munlock", "pinned memory"),
    Call("get_mempolicy", "memory nodes"),
    # Threads, and no process: clone3 hides its flags in memory, where no filter can look
    Call("clone", "threads", (Condition(0, _A_THREAD),)),
    Refusal("clone3", errno.ENOSYS, "glibc then uses clone"),
    Call("set_robust_list", "new threads"),
    Call("rseq", "new threads"),
    Call("set_tid_address", "new threads"),
    Call("prctl", "names of threads", (Condition(0, _PR_SET_NAME),)),
    Call("prctl", "names of threads", (Condition(0, _PR_GET_NAME),)),
    Refusal("prctl", errno.EINVAL, "glibc names its memory where it can", (Condition(0, _PR_SET_VMA),)),
    *(Call("futex", _FUTEX_REASON, (only(1, _FUTEX_FLAGS, operation),)) for operation in _FUTEX_OPERATIONS),
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
    Call("prlimit64", "size of stacks", (Condition(0, 0), Condition(2, 0, WHOLE))),
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
    # Its devices are opened when they are first used, for reading and writing, and so are its threads' names
    Call("openat", "devices", (Condition(2, os.O_RDWR, os.O_ACCMODE | os.O_APPEND | _MAKES_OR_EXTENDS),)),
    Refusal("openat", errno.EACCES, "caches", (Condition(2, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_APPEND),)),
    Call("ioctl", "NVIDIA's driver", (Condition(1, ord("F") << 8, _TYPE_MASK),)),
    Call("ioctl", "DRM, for ROCm", (Condition(1, ord("d") << 8, _TYPE_MASK),)),
    Call("ioctl", "KFD, for ROCm", (Condition(1, ord("K") << 8, _TYPE_MASK),)),
    Call("ioctl", "NVIDIA's unified memory", (Condition(1, 0, 0xFFFF_FF00),)),
    Call("ioctl", "NVIDIA's unified memory, its start", (Condition(1, 0x30000001),)),
    Call("ioctl", "NVIDIA's unified memory, its end", (Condition(1, 0x30000002),)),
    Call("epoll_wait", "CUDA's event thread"),
    Call("epoll_ctl", "CUDA's event thread"),
    Call("ppoll", "CUDA's event thread"),
    Call("eventfd2", "CUDA's event thread", (only(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE),)),
    # Not O_NOTIFICATION_PIPE, through which the kernel itself writes
    Call("pipe2", "CUDA's event thread", (only(1, os.O_CLOEXEC | os.O_NONBLOCK),)),
)
_NO_GPU: tuple[Call | Refusal, ...] = (
    Refusal("openat", errno.EACCES, "caches, /dev/null", (Condition(2, os.O_RDWR, os.O_RDWR),)),
)


def calls(pid: int, *, gpu: bool) -> tuple[Call | Refusal, ...]:
    """The list for the worker that is process `pid`: it may signal nobody but itself, as abort(3) does."""
    own = Call("tgkill", "abort", (Condition(0, pid),))
    return (*_COMMON, own, *(_GPU if gpu else _NO_GPU))


def recording(pid: int) -> tuple[Call, ...]:
    """What a worker in record mode calls unheard, from before its device's start on. The supervisor hears of all else:
    each file that is opened, each ioctl, what calls() refuses or does not list."""
    heard = ("openat", "ioctl")
    return tuple(call for call in calls(pid, gpu=True) if isinstance(call, Call) and call.name not in heard)
