"""The SELinux module, linked with the distribution's policy into what a kernel would load, and read with setools."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

MODULE = Path(__file__).parents[2] / "selinux"
_DEVEL = Path("/usr/share/selinux/devel/Makefile")
_STORE = Path("/var/lib/selinux/default")
_COMMANDS = ("make", "m4", "checkmodule", "semodule", "semodule_package", "sesearch", "seinfo", "matchpathcon")
# genhomedircon looks up every user of this machine, which the module has nothing to do with.
_SEMANAGE = "module-store = direct\nexpand-check = 0\ndisable-genhomedircon = true\n"
# Another module, as it would be written for a client.
CLIENT = """policy_module(weave_client, 1.0.0)
type weave_client_t;
domain_type(weave_client_t)
weave_stream_connect(weave_client_t)
weave_receive_images(weave_client_t)
type weave_librarian_t;
domain_type(weave_librarian_t)
weave_manage_models(weave_librarian_t)
"""
_RULE = re.compile(r"allow (\S+) (\S+):(\S+) (?:\{ (.+) \}|(\S+));(?: \[ (.+) \]:(\w+))?")


class Rule(NamedTuple):
    """One allow rule. Source and target are types or attributes; `condition` is empty if the rule has none."""

    source: str
    target: str
    tclass: str
    permissions: frozenset[str]
    condition: str


class Policy:
    """All allow rules of a linked policy, and the labels of files."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the root that link() has filled."""
        self._contexts = folder / "etc/selinux/default/contexts/files/file_contexts"
        (self._binary,) = (folder / "etc/selinux/default/policy").iterdir()
        self._rules = list(_parse(_output("sesearch", "--allow", self._binary).splitlines()))
        self._names: dict[str, set[str]] = {}

    def names(self, type_: str) -> set[str]:
        """The type and its attributes."""
        if type_ not in self._names:
            shown = _output("seinfo", "-x", "-t", type_, self._binary)
            self._names[type_] = set(re.findall(r"\w+", shown.rpartition("type ")[2]))
        return self._names[type_]

    def by(self, *types: str) -> Iterator[Rule]:
        """What these may do, the distribution's rules for all domains included."""
        for type_ in types:
            names = self.names(type_)
            yield from (rule for rule in self._rules if rule.source in names)

    def about(self, type_: str) -> Iterator[Rule]:
        """What any domain may do to it, by rules that name it. Rules for attributes are the distribution's."""
        return (rule for rule in self._rules if rule.target == type_)

    def label(self, path: str, kind: str = "file") -> str:
        """The type that a file gets."""
        shown = _output("matchpathcon", "-n", "-m", kind, "-f", self._contexts, path)
        return shown.split(":")[2]


def skip_unless_installed() -> None:
    """make mac-test installs what is needed."""
    missing = [command for command in _COMMANDS if shutil.which(command) is None]
    if missing or not _DEVEL.exists() or not _STORE.exists():
        pytest.skip("needs selinux-policy-dev, selinux-policy-default and setools: make mac-test")


def link(folder: Path, rules: Iterable[str] = ()) -> Policy:
    """Compile the module with `rules` added, and link it with the distribution's policy in a separate root."""
    source, root = folder / "module", folder / "root"
    shutil.copytree(MODULE, source, ignore=shutil.ignore_patterns("tmp", "*.pp"))
    module = source / "weave_compute.te"
    types = {type_ for rule in rules for type_ in re.findall(r"\w+_t\b", rule)}
    required = "".join(f"\ttype {type_};\n" for type_ in sorted(types))
    added = "".join(f"{rule}\n" for rule in rules)
    module.write_text(module.read_text() + f"require {{\n{required}}}\n{added}" * bool(types))
    (source / "weave_client.te").write_text(CLIENT)
    _output("make", "-C", source)
    _output("make", "-C", source, "-f", _DEVEL, "weave_client.pp")
    shutil.copytree(_STORE, root / "var/lib/selinux/default")
    (root / "etc/selinux").mkdir(parents=True)
    (root / "etc/selinux/semanage.conf").write_text(_SEMANAGE)
    _output("semodule", "-n", "-p", root, "-s", "default", "-i", *sorted(source.glob("*.pp")))
    return Policy(root)


def _parse(lines: Iterable[str]) -> Iterator[Rule]:
    for line in lines:
        if not (match := _RULE.fullmatch(line.strip())):
            continue
        source, target, tclass, many, one, condition, value = match.groups()
        permissions = frozenset((many or one).split())
        yield Rule(source, target, tclass, permissions, f"{condition}:{value}" if condition else "")


def _output(*command: str | Path) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
