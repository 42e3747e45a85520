"""A Debian tree to install packages into, and what is in it."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
BUILT = ROOT / "packages"
CONFIG = "etc/weave/weave-compute.toml"
# Who installs packages keeps books, and users stay when packages go.
BOOKKEEPING = ("var/lib/dpkg", "var/lib/apt", "var/cache", "var/log/apt", "var/log/dpkg.log", "root/.rpmdb")
USERS = {f"etc/{name}{backup}" for name in ("passwd", "group", "shadow", "gshadow") for backup in ("", "-")}
USERS |= {"etc/.pwd.lock"}


def run(*command: str | Path, **more: object) -> str:
    """Its standard output; fails with all of its output."""
    done = subprocess.run(command, check=False, text=True, capture_output=True, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return str(done.stdout)


class Tree:
    """A root file system in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *command: str) -> str:
        """Runs there, as root."""
        inside = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        unshared = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", inside, str(self.path))
        return run(*unshared, *command, env=os.environ | variables)

    def copy(self, path: Path) -> "Tree":
        run("cp", "--archive", "--reflink=auto", self.path, path)
        return Tree(path)

    def take(self, *packages: Path) -> list[str]:
        """Copies into its /tmp; their names there."""
        return [f"/tmp/{Path(shutil.copy(package, self.path / 'tmp')).name}" for package in packages]

    def files(self) -> dict[str, str]:
        """Owner and mode of each path, except those that any installation changes."""
        found = {}
        for folder, folders, names in os.walk(self.path):
            inside = Path(folder).relative_to(self.path)
            folders[:] = [name for name in folders if str(inside / name) not in BOOKKEEPING + ("proc", "tmp")]
            for name in (*folders, *names):
                status = os.lstat(Path(folder, name))
                found[str(inside / name)] = f"{status.st_uid}:{status.st_gid} {status.st_mode:o}"
        return {name: kind for name, kind in found.items() if name not in BOOKKEEPING}


def differences(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Paths added, removed, or with another owner or mode; also printed."""
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    print("left behind or changed:", sorted(changed))
    return changed


def base(*packages: str) -> Path:
    """Debian 12 with `packages`, as a tar. Fetched once for each list of them."""
    name = f"debian-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:12]}.tar"
    return cached(CACHE / name, lambda part: bootstrap(part, "bookworm", packages))


def bootstrap(target: Path, release: str, packages: Iterable[str] = ()) -> None:
    """A Debian of that release, with `packages`, as a tar or a folder."""
    included = [f"--include={','.join(packages)}"] if packages else []
    form = "tar" if target.suffix == ".tar" else "directory"
    run("mmdebstrap", "--variant=minbase", f"--format={form}", *included, release, target)


def cached(file: Path, make: Callable[[Path], object]) -> Path:
    """`file` or folder, made where it is not there yet, under another name until it is whole. A second caller waits."""
    with locked(file.parent):
        if not file.exists():
            with tempfile.TemporaryDirectory(prefix=f"{file.name}-", dir=file.parent) as folder:
                make(Path(folder, file.name))
                Path(folder, file.name).rename(file)
    return file


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locked by this process until it exits."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def debian(folder: Path, dependencies: str) -> Tree:
    """Debian 12 with `dependencies`, in the words of a control file, as apt finds them. Cached but for these."""
    folder.mkdir()
    run("tar", "--extract", "--directory", folder, "--file", base())
    shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
    tree = Tree(folder)
    tree.run("apt-get", "update")
    tree.run("apt-get", "satisfy", "-y", "--no-install-recommends", dependencies)
    return tree
