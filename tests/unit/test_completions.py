"""Completion runs in the user's shell, on text that comes from the daemon."""

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from completions import FOLDER, PARSERS, SHELLS, completion

# Text that a hostile daemon makes weavectl print. Any part that is executed creates a file.
HOSTILE = r"""good-model              sd1     A model
$(>made-1)              sd1     A model
`>made-2`               sd1     A model
';>made-3;'             sd1     A model
";>made-4;"             sd1     A model
good$(>made-5)          sd1     A model
<(>made-6)              sd1     A model
*                       sd1     A model
-rf                     sd1     A model
good\ $(>made-7)        sd1     $(>made-8)
a;>made-9               sd1     A model
(e:'>made-10':)         sd1     A model
"""
INTERACTIVE = {
    "bash": ("bash", "--norc", "--noprofile", "-i"),
    "zsh": ("zsh", "-f", "-i"),
}
LOAD = {
    "bash": f"source {FOLDER}/weavectl.bash\n",
    "zsh": f'autoload -Uz compinit; compinit -u -D; eval "$(<{FOLDER}/weavectl.zsh)"\n',
}


@pytest.mark.parametrize("command", PARSERS)
@pytest.mark.parametrize("shell", SHELLS)
def test_the_completions_are_generated_from_the_options(command: str, shell: str) -> None:
    made = completion(command, shell)
    assert (FOLDER / f"{command}.{shell}").read_text() == made, "run: python -m scripts.completions"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With a weavectl that prints the text of a hostile daemon."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "text").write_text(HOSTILE)
    (programs / "weavectl").write_text(f"#!/bin/sh\ncat {programs}/text\n")
    (programs / "weavectl").chmod(0o755)
    return os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}


def made_files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith("made")]


@pytest.mark.parametrize("shell", INTERACTIVE)
def test_completions_never_run_a_daemons_text(shell: str, environment: dict[str, str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    with interactive(INTERACTIVE[shell], environment, tmp_path) as terminal:
        os.write(terminal, LOAD[shell].encode())
        for typed in (b"weavectl load \t\t", b"weavectl generate x --model good\t\t"):
            os.write(terminal, typed)
            shown = read_until(terminal, b"good-model")
            assert b"-rf" not in shown.split(b"load")[-1]
            os.write(terminal, b"\x15")  # kill the line
        os.write(terminal, b"echo over-$((1+1))\n")
        read_until(terminal, b"over-2")
    assert made_files(tmp_path) == []


def test_fish_completions_never_run_a_daemons_text(environment: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    script = f"source {FOLDER}/weavectl.fish; complete -C 'weavectl load '"
    asked = ["fish", "--no-config", "-c", script]
    done = subprocess.run(asked, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["good-model"]
    assert made_files(tmp_path) == []


def test_bash_offers_ids_and_job_numbers_alone(environment: dict[str, str], tmp_path: Path) -> None:
    def offered(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in ("weavectl", *words))
        script = f"""source {FOLDER}/weavectl.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}
            _shtab_weavectl; [ ${{#COMPREPLY[@]}} = 0 ] || printf '%s\\n' "${{COMPREPLY[@]}}" """
        asked = ["bash", "--norc", "-c", script]
        done = subprocess.run(asked, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert offered("load", "") == ["good-model"]
    assert offered("load", "x") == [] and offered("generate", "x", "--model", "go") == ["good-model"]
    (tmp_path / "bin/text").write_text("job 12      queued\njob $(>made) queued\njob 345     running\n")
    assert offered("cancel", "") == ["12", "345"] and offered("cancel", "3") == ["345"]
    assert made_files(tmp_path) == []


class interactive:
    """The shell, on its own terminal."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str], folder: Path) -> None:
        self._terminal, inner = pty.openpty()
        self._process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, env=environment, cwd=folder, start_new_session=True
        )
        os.close(inner)

    def __enter__(self) -> int:
        return self._terminal

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)


def read_until(terminal: int, wanted: bytes, seconds: float = 60) -> bytes:
    seen, end = b"", time.monotonic() + seconds
    while wanted not in seen:
        assert select.select([terminal], [], [], max(end - time.monotonic(), 0))[0], seen
        seen += os.read(terminal, 4096)
    return seen
