"""Builds the packages: `scripts/packages.py weave-compute weave-compute-torch weave-compute-model-shapes`.

Each is staged as a tree in packages/, then nfpm writes it as .deb and .rpm (packaging/*.yaml). The same commit gives
the same bytes. Environment variables: PACKAGE_PYTHON, PACKAGE_VERSION, PACKAGE_RELEASE, MAINTAINER, SOURCE_DATE_EPOCH.
"""

import fcntl
import gzip
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import install_torch
import pins

from weave import __version__

OUT = Path("packages")
# The distribution's interpreter. The package is a virtual environment of it.
PYTHON = os.environ.get("PACKAGE_PYTHON", "/usr/bin/python3.11")
SITE = Path("usr/lib/weave-compute/lib", Path(PYTHON).name, "site-packages")
VERSION = os.environ.get("PACKAGE_VERSION", __version__)
RELEASE = os.environ.get("PACKAGE_RELEASE", "1")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
BUILDER = OUT / "tree/builder"
PIP = [sys.executable, "-m", "pip", "--python", str(BUILDER / "bin/python"), "--disable-pip-version-check"]
# Keep paths of this machine out of what is compiled, which is python-prctl.
COMPILER = {"CFLAGS": "-g0 -ffile-prefix-map=/=/", "LDFLAGS": "-Wl,--build-id=none -Wl,--strip-all"}


def main() -> None:
    """Build the packages named in the arguments."""
    os.environ["SOURCE_DATE_EPOCH"] = os.environ.get("SOURCE_DATE_EPOCH") or time_of_commit()
    makers = {
        "weave-compute": stage_daemon,
        "weave-compute-torch": stage_torch,
        "weave-compute-model-shapes": stage_shapes,
    }
    OUT.mkdir(exist_ok=True)
    fcntl.flock(os.open(OUT, os.O_RDONLY), fcntl.LOCK_EX)  # until we exit: another build would clear our trees
    shutil.rmtree(OUT / "tree", ignore_errors=True)
    make_builder()
    for name in sys.argv[1:]:
        tree = OUT / "tree" / name
        tree.mkdir(parents=True)
        full_name = makers[name](tree)
        document(tree, full_name)
        settle(tree)
        for packager in ("deb", "rpm"):
            write(packager, name, full_name, tree)
    shutil.rmtree(OUT / "tree")


def time_of_commit() -> str:
    """In seconds. Outside git (a release's archive): 1980, the earliest time that a .zip can hold."""
    command = ["git", "log", "-1", "--format=%ct"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "315532800"


def stage_daemon(tree: Path) -> str:
    """The program with its libraries, units, documentation and policies."""
    site = tree / SITE
    pip(site, "--no-deps", "--require-hashes", "--requirement", pinned(tree.parent))
    shutil.copytree("weave", site / "weave", ignore=shutil.ignore_patterns("__pycache__"))
    compile_all(tree)
    prefix = tree / "usr/lib/weave-compute"
    (prefix / "bin").mkdir()
    (prefix / "bin/python").symlink_to(PYTHON)
    (prefix / "pyvenv.cfg").write_text(f"home = {Path(PYTHON).parent}\ninclude-system-site-packages = false\n")
    for name, module in (("weave-compute", "weave.supervisor.main"), ("weavectl", "weave.weavectl.main")):
        script = put(tree / "usr/bin" / name)
        script.write_text(f"#!/usr/lib/weave-compute/bin/python -IB\nfrom {module} import main\n\nmain()\n")
        script.chmod(0o755)
        shutil.copy(f"conf/completions/{name}.bash", put(tree / "usr/share/bash-completion/completions" / name))
        shutil.copy(f"conf/completions/{name}.fish", put(tree / f"usr/share/fish/vendor_completions.d/{name}.fish"))
        for folder in ("vendor-completions", "site-functions"):  # Debian's, Fedora's
            shutil.copy(f"conf/completions/{name}.zsh", put(tree / "usr/share/zsh" / folder / f"_{name}"))
        zipped(Path(f"docs/man/{name}.1"), tree / f"usr/share/man/man1/{name}.1.gz")
    shutil.copytree("conf/systemd", tree / "usr/lib/systemd")
    shutil.copy("conf/sysusers.conf", put(tree / "usr/lib/sysusers.d/weave-compute.conf"))
    shutil.copy("conf/tmpfiles.conf", put(tree / "usr/lib/tmpfiles.d/weave-compute.conf"))
    shutil.copy("conf/system.toml", put(tree / "etc/weave/weave-compute.toml"))
    (tree / "etc/weave/conf.d").mkdir()
    documents = tree / "usr/share/doc/weave-compute"
    for document in (Path("README.md"), *Path("docs").glob("*.md"), Path("docs/demo.png"), Path("docs/processes.svg")):
        shutil.copy(document, put(documents / document))
    zipped(Path("CHANGELOG.md"), documents / "changelog.gz")
    for file in ("apparmor/README.md", "selinux/README.md"):
        shutil.copy(file, put(documents / file))
    shutil.copy("conf/weave-compute.toml", put(documents / "examples/weave-compute.toml"))
    stage_mac(tree)
    return "weave-compute"


def stage_mac(tree: Path) -> None:
    """AppArmor's profiles, for the .deb only, and SELinux's module, for the .rpm only."""
    shutil.copytree("apparmor/profiles", tree / "etc/apparmor.d")
    subprocess.run(["make", "--silent", "-C", "selinux"], check=True)
    shutil.copy("selinux/weave_compute.pp", put(tree / "usr/share/selinux/packages/weave_compute.pp"))
    for file in ("weave_compute.te", "weave_compute.fc"):
        shutil.copy(f"selinux/{file}", put(tree / "usr/share/selinux/packages/weave_compute" / file))
    # Only there: a build of any module reads all interfaces in that folder, and rejects duplicate definitions.
    interface = "usr/share/selinux/devel/include/contrib/weave_compute.if"
    shutil.copy("selinux/weave_compute.if", put(tree / interface))


def stage_torch(tree: Path) -> str:
    """The build of torch that pip selects here, with the libraries that only it needs."""
    site = tree / SITE
    file = tree.parent / "requirements-torch.txt"
    lines = install_torch.of_torch(PIP, options=["--ignore-installed"])
    file.write_text("\n".join(lines) + "\n")
    hashed = ["--require-hashes"] if all("--hash" in line for line in lines) else []
    pip(site, "--no-deps", *hashed, "--requirement", str(file))
    compile_all(tree)
    built_for = re.findall(r"^(cuda|hip)\b.* = '", (site / "torch/version.py").read_text(), re.MULTILINE)
    return "weave-compute-torch-" + ({"cuda": "cuda", "hip": "rocm"}[built_for[0]] if built_for else "cpu")


def stage_shapes(tree: Path) -> str:
    """The demo model, which is served if the config has no models."""
    shutil.copytree("models/shapes", tree / "usr/share/weave-compute/models/shapes")
    return "weave-compute-model-shapes"


def pinned(folder: Path) -> str:
    """The entries of requirements.lock that the daemon needs on the package's Python, without torch and what it
    needs."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    chosen = pins.of(pins.needed(project["dependencies"], Path(PYTHON).name.removeprefix("python")))
    file = folder / "requirements.txt"
    file.write_text("\n".join(chosen) + "\n")
    return str(file)


def pip(site: Path, *what: str) -> None:
    """Install into `site`, and remove what differs between installations."""
    # The cache may have a python-prctl compiled for another interpreter.
    options = ["--quiet", "--no-cache-dir", "--no-compile", "--no-build-isolation", "--use-pep517"]
    subprocess.run([*PIP, "install", *options, "--target", str(site), *what], check=True, env=os.environ | COMPILER)
    for folder in ("bin", "share"):  # the libraries' commands and man pages
        shutil.rmtree(site / folder, ignore_errors=True)
    for name in ("INSTALLER", "REQUESTED", "direct_url.json"):
        for file in site.glob(f"*.dist-info/{name}"):
            file.unlink()
    # Libraries find each other by RECORD (importlib.metadata), so it stays, without the removed files.
    for record in site.glob("*.dist-info/RECORD"):
        lines = record.read_text().splitlines()
        record.write_text("".join(f"{line}\n" for line in lines if (site / line.split(",")[0]).exists()))


def make_builder() -> None:
    """A virtual environment of the package's Python, with what building a source distribution needs."""
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", BUILDER], check=True)
    subprocess.run([*PIP, "install", "--quiet", "--require-hashes", "-r", "requirements-build.lock"], check=True)


def compile_all(tree: Path) -> None:
    """The daemon can write no .pyc files, and does not check them against the source. With one process only: with
    several the same code may be marshalled differently."""
    options = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", "/"]
    options += ["-x", r"/py3\d+_"]  # torch's tests of a later Python's syntax
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    subprocess.run([PYTHON, "-m", "compileall", *options, str(tree / SITE)], check=True, env=environment)


def document(tree: Path, name: str) -> None:
    """The files that Debian's policy requires in every package (12.5, 12.7)."""
    documents = tree / "usr/share/doc" / name
    copyright = Path("packaging/copyright").read_text() + Path("LICENSE").read_text()
    put(documents / "copyright").write_text(copyright)
    overrides = Path("packaging/lintian-overrides").read_text().replace("PACKAGE", name)
    put(tree / "usr/share/lintian/overrides" / name).write_text(overrides)
    date = subprocess.check_output(["date", "-Ru", "-d", f"@{os.environ['SOURCE_DATE_EPOCH']}"], text=True)
    entry = f"{name} ({VERSION}-{RELEASE}) unstable; urgency=medium\n\n  * See changelog.gz of weave-compute.\n\n"
    changes = tree.parent / "changelog"
    changes.write_text(f"{entry} -- {maintainer()}  {date}")
    zipped(changes, documents / "changelog.Debian.gz")


def settle(tree: Path) -> None:
    """Make modes and times independent of the machine."""
    when = int(os.environ["SOURCE_DATE_EPOCH"])
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            program = path.stat().st_mode & 0o100 and path.suffix != ".py" and ".so" not in path.suffixes
            path.chmod(0o755 if path.is_dir() or program else 0o644)
        os.utime(path, (when, when), follow_symlinks=False)


def write(packager: str, name: str, full_name: str, tree: Path) -> None:
    """Write one package with nfpm, from its description in packaging/."""
    variables = {
        "NAME": full_name,
        "TREE": str(tree),
        "VERSION": VERSION,
        "RELEASE": RELEASE,
        "ARCH": ARCHITECTURES[platform.machine()],
        "MAINTAINER": maintainer(),
        "PYTHON": PYTHON,
        "PYTHON_NAME": Path(PYTHON).name,
        # The daemon needs the version of torch that it was locked with, installed for the same Python.
        "TORCH": f"weave-compute-torch-abi-{install_torch.requirement().split('==')[1]}-{Path(PYTHON).name}",
    }
    nfpm = Path(sys.executable).with_name("nfpm")
    command = [str(nfpm), "package", "--config", f"packaging/{name}.yaml", "--packager", packager, "--target", str(OUT)]
    subprocess.run(command, check=True, env=os.environ | variables)


def maintainer() -> str:
    """By default a placeholder: the packages' maintainer is the person who builds them."""
    return os.environ.get("MAINTAINER", "weave-compute <weave-compute@localhost>")


def zipped(source: Path, target: Path) -> None:
    """Compress like gzip -n9."""
    put(target).write_bytes(gzip.compress(source.read_bytes(), 9, mtime=0))


def put(path: Path) -> Path:
    """Create the folder of `path`, and return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    main()
