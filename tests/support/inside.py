"""Starts a program inside seccomp filters that forbid nothing it needs, as systemd's SystemCallFilter= does: `python
inside.py COUNT PROGRAM...`."""

import os
import sys

from weave.sandbox import libseccomp


def install_filter() -> None:
    pyseccomp = libseccomp.load()
    outer = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    outer.add_rule(pyseccomp.ERRNO(1), "kexec_load")
    outer.load()


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        install_filter()
    os.execvp(sys.argv[2], sys.argv[2:])
