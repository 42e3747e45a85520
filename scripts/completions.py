"""Writes conf/completions, for bash, zsh and fish: shtab generates them from the two commands' parsers.

IDs of models, LoRAs, embeddings and ControlNets, and job numbers, come from the daemon. They are read as lines, matched
against a pattern and offered literally, never expanded as `compgen -W` would.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import shtab

from weave.supervisor.main import parser as daemon_parser
from weave.weavectl.options import parser as client_parser

FOLDER = Path(__file__).resolve().parents[1] / "conf" / "completions"
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "weave-compute": daemon_parser,
    "weavectl": client_parser,
}
SHELLS = ("bash", "zsh", "fish")
FILES = ("config", "file", "image", "mask", "output", "path", "references", "socket", "socket_path")
FROM_DAEMON = {
    "model": "_weavectl_models",
    "loras": "_weavectl_loras",
    "embeddings": "_weavectl_embeddings",
    "control": "_weavectl_controls",
    "job": "_weavectl_jobs",
}
HEADER = "# Made by scripts/completions.py with shtab, from the options themselves; do not edit.\n"

BASH = r"""
_weavectl_models() { _weavectl_lines models '^([a-z0-9][a-z0-9._-]{0,63}) ' "$1"; }
_weavectl_loras() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(LoRA, [^()]*\)$' "$1"; }
_weavectl_embeddings() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(embedding\)$' "$1"; }
_weavectl_controls() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(ControlNet\)$' "$1"; }
_weavectl_jobs() { _weavectl_lines status '^job ([0-9]{1,19}) ' "$1"; }
_weavectl_lines() {
    local LC_ALL=C line
    while IFS= read -r line; do
        [[ $line =~ $2 && ${BASH_REMATCH[1]} == "$3"* ]] && printf '%s\n' "${BASH_REMATCH[1]}"
    done < <(weavectl --timeout 2 "$1" 2>/dev/null)
}
"""
ZSH = r"""
_weavectl_models() { _weavectl_lines models '^([a-z0-9][a-z0-9._-]{0,63}) ' }
_weavectl_loras() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(LoRA, [^()]*\)$' }
_weavectl_embeddings() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(embedding\)$' }
_weavectl_controls() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(ControlNet\)$' }
_weavectl_jobs() { _weavectl_lines status '^job ([0-9]{1,19}) ' }
_weavectl_lines() {
  local LC_ALL=C line MATCH
  local -a found match
  while IFS= read -r line; do
    [[ $line =~ $2 ]] && found+=("$match[1]")
  done < <(weavectl --timeout 2 "$1" 2>/dev/null)
  compadd -a found
}
"""
FISH = r"""
function _weavectl_models
  weavectl --timeout 2 models 2>/dev/null | string replace -rf '^([a-z0-9][a-z0-9._-]{0,63}) .*$' '$1'
end
function _weavectl_loras
  weavectl --timeout 2 models 2>/dev/null | string replace -rf '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(LoRA, [^()]*\)$' '$1'
end
function _weavectl_embeddings
  weavectl --timeout 2 models 2>/dev/null | string replace -rf '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(embedding\)$' '$1'
end
function _weavectl_controls
  weavectl --timeout 2 models 2>/dev/null | string replace -rf '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(ControlNet\)$' '$1'
end
function _weavectl_jobs
  weavectl --timeout 2 status 2>/dev/null | string replace -rf '^job ([0-9]{1,19}) .*$' '$1'
end
"""
PREAMBLE = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def completion(command: str, shell: str) -> str:
    """The file for one command and one shell."""
    parser = PARSERS[command]()
    _mark(parser, shell)
    preamble = PREAMBLE[shell] if command == "weavectl" else ""
    made = shtab.complete(parser, shell=shell, preamble=preamble)
    lines = [line.rstrip() for line in made.splitlines()]
    # zsh needs the first line. The rest of shtab's header says how to install the file by hand.
    first = [lines[0]] if lines[0].startswith("#compdef") else []
    body = itertools.dropwhile(lambda line: not line or line.startswith("#"), lines)
    return "\n".join([*first, HEADER, *body]) + "\n"


def _mark(parser: argparse.ArgumentParser, shell: str) -> None:
    """Set what completes each argument."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _mark(verb, shell)
        elif action.dest in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in FROM_DAEMON:
            fish = f"({FROM_DAEMON[action.dest]})"
            bash_and_zsh = FROM_DAEMON[action.dest]
            action.complete = {"bash": bash_and_zsh, "zsh": bash_and_zsh, "fish": fish}  # type: ignore[attr-defined]
        if shell == "zsh" and isinstance(action.metavar, str):
            action.metavar = action.metavar.replace(":", r"\:")  # shtab does not escape it


def main() -> None:
    """Write the files."""
    for command in PARSERS:
        for shell in SHELLS:
            (FOLDER / f"{command}.{shell}").write_text(completion(command, shell))


if __name__ == "__main__":
    main()
