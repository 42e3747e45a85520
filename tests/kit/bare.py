"""A machine with torch and little else: Debian 13 in a folder, with no network, no compiler and no libseccomp."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.packages.tree import CACHE, Tree, bootstrap, cached

TORCH = Path("/opt/odd/place/torch/.venv")
LIBRARIES = (
    *("torch==2.11.0", "transformers==5.17.0", "huggingface_hub==1.33.0", "safetensors==0.8.0", "numpy==2.5.2"),
    *("pillow", "pytest"),
)
# $1 the tree, $2 where what changes goes, $3 the kit, $4 the folder to run in; then the command.
INSIDE = """
set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/changed,workdir=$2/work" "$2/root"
mount -t proc proc "$2/root/proc"
mount --rbind /dev "$2/root/dev"
mount --rbind /sys "$2/root/sys"
rm -f "$2"/root/usr/lib/*/libseccomp.so*
chroot "$2/root" /sbin/ldconfig
mkdir -p "$2/root/mnt/gpu-kit" "$2/root$4"
mount --bind -o ro "$3" "$2/root/mnt/gpu-kit"
root=$2/root folder=$4
shift 4
exec chroot "$root" env --ignore-environment --chdir="$folder" PATH=/usr/bin:/bin "$@"
"""


class Bare:
    """`folder` gets what a run changes."""

    def __init__(self, tree: Path, folder: Path, kit: Path) -> None:
        self._tree, self._folder, self._kit = tree, folder, kit
        for name in ("changed", "work", "root"):
            (folder / name).mkdir(parents=True)

    def run(self, *command: str, folder: str = "/root") -> "subprocess.CompletedProcess[str]":
        """As root in that folder, in its own network namespace. The kit is at /mnt/gpu-kit, and read-only."""
        apart = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", INSIDE, "sh")
        places = map(str, (self._tree, self._folder, self._kit, folder))
        done = subprocess.run([*apart, *places, *command], check=False, capture_output=True, text=True)
        print(done.stdout, done.stderr)
        return done

    def path(self, path: str) -> Path:
        """The path, outside the namespace, of a file that a run has made."""
        return self._folder / "changed" / path.lstrip("/")

    def changed(self) -> set[str]:
        """All files that runs have made, changed or removed."""
        changed = self._folder / "changed"
        return {str(file.relative_to(changed)) for file in changed.rglob("*") if file.is_symlink() or not file.is_dir()}


def debian_with_torch() -> Path:
    """$KIT_TREE, where it is set. Nothing is changed in it."""
    if given := os.environ.get("KIT_TREE"):
        return Path(given)
    return cached(CACHE / "debian-13-torch", make)


def make(path: Path) -> None:
    """With torch for CUDA, as pip picks it from PyPI: a download of 3 GB."""
    bootstrap(path, "trixie", ["passwd", "python3-venv"])
    shutil.copy("/etc/resolv.conf", path / "etc/resolv.conf")
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")  # the index may have one that Debian does not know
    (path / certificates.parent.relative_to("/")).mkdir(parents=True, exist_ok=True)
    shutil.copy(certificates, path / certificates.relative_to("/"))
    tree = Tree(path)
    tree.run("python3", "-m", "venv", str(TORCH))
    tree.run("env", "--unset=PIP_FIND_LINKS", str(TORCH / "bin/pip"), "install", "--no-cache-dir", *LIBRARIES)
