"""Run a command that sees some folders which every user can reach, even below a folder that only root may enter.
`unshare --mount python readable.py FOLDER... -- COMMAND...`: in its own mount namespace, each closed parent folder is
covered, and the given folders are mounted there again."""

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path


def uncover(folders: list[Path]) -> None:
    closed = defaultdict(list)
    for folder in folders:
        for above in reversed(folder.parents):
            if not above.stat().st_mode & 0o001:
                closed[above].append(folder)
                break
    for above, within in closed.items():
        kept = [tempfile.mkdtemp() for _ in within]
        for folder, place in zip(within, kept, strict=True):
            subprocess.run(["mount", "--bind", folder, place], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "weave-test", above], check=True)
        for folder, place in zip(within, kept, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--move", place, folder], check=True)
            os.rmdir(place)


if __name__ == "__main__":
    border = sys.argv.index("--")
    os.umask(0o022)
    uncover([Path(folder) for folder in sys.argv[1:border]])
    os.execvp(sys.argv[border + 1], sys.argv[border + 1 :])
