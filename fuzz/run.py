"""make fuzz: runs each target for its share of the time, then prints a table.

Inputs that reach new code are added to fuzz/corpus, which is in git, up to a limit. Inputs that break something are
written to fuzz/crashes, and tests/unit/test_fuzz_corpus.py runs them from then on.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "fuzz" / "corpus"
CRASHES = ROOT / "fuzz" / "crashes"
# Of the corpus of each target.
MAX_FILES = 60
MAX_BYTES = 20 * 1024
# Longer than any valid version 1 request.
MAX_INPUT = 8192
# An input that takes longer than this counts as a hang.
TIMEOUT_SECONDS = 10
# How much output of a crash is shown: its traceback, and libFuzzer's report.
_LAST_LINES = 40


class Outcome(NamedTuple):
    """The result of one target. `output` is from atheris; `failed`: it ended before its time was up."""

    target: str
    executions: int
    seconds: float
    coverage: int
    corpus: int
    crashes: list[Path]
    failed: bool
    output: str


def main() -> int:
    """Returns 0 if nothing was found, 1 if something was, 2 if atheris is not installed."""
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__)
    parser.add_argument("--seconds", type=int, default=120, metavar="N", help="for all targets together (default: 120)")
    parser.add_argument("--discard", action="store_true", help="do not add inputs to the corpus")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: it has builds for x86-64 and Python 3.11 to 3.13 only", file=sys.stderr)
        return 2
    targets = arguments.targets or list(TARGETS)
    seconds = max(1, arguments.seconds // len(targets))
    outcomes = []
    for target in targets:
        print(f"{target}: {seconds} s", file=sys.stderr)
        outcomes.append(fuzz(target, seconds, discard=arguments.discard))
    report(outcomes)
    return int(any(outcome.failed for outcome in outcomes))


def fuzz(target: str, seconds: int, *, discard: bool) -> Outcome:
    """Run one target in its own process, which a crash ends."""
    corpus, crashes = CORPUS / target, CRASHES / target
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    before = set(crashes.iterdir())
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        new = folder / "new"
        new.mkdir()
        options = [f"-max_total_time={seconds}", f"-max_len={MAX_INPUT}", "-print_final_stats=1"]
        options += [f"-dict={_words(folder, target)}", f"-artifact_prefix={crashes}/"]
        started = time.monotonic()
        status, output = _atheris(target, folder, *options, str(new), str(corpus))
        took = time.monotonic() - started
        found = sorted(set(crashes.iterdir()) - before)
        if not discard:
            keep(target, new, folder)
    if not any(crashes.iterdir()):
        crashes.rmdir()
    return Outcome(
        target=target,
        executions=_number(r"stat::number_of_executed_units: (\d+)", output),
        seconds=took,
        coverage=_number(r"cov: (\d+)", output),
        corpus=len(list(corpus.iterdir())),
        crashes=found,
        failed=status != 0 or bool(found),
        output=output,
    )


def keep(target: str, new: Path, folder: Path) -> None:
    """Add to the corpus the inputs of `new` that reach code it does not, smallest first, while there is room."""
    corpus, merged = CORPUS / target, folder / "merged"
    merged.mkdir()
    kept = {path: path.stat().st_size for path in corpus.iterdir()}
    for path in kept:
        (merged / path.name).write_bytes(path.read_bytes())
    _atheris(target, folder, "-merge=1", "-use_counters=0", f"-artifact_prefix={folder}/", str(merged), str(new))
    files, size = len(kept), sum(kept.values())
    for path in sorted(merged.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        if (corpus / path.name).exists():
            continue
        size += path.stat().st_size
        files += 1
        if files > MAX_FILES or size > MAX_BYTES:
            return
        (corpus / path.name).write_bytes(path.read_bytes())


def report(outcomes: list[Outcome]) -> None:
    """Print the table, then each crash with its traceback and the command that reproduces it."""
    table = Table("target", "executions", "exec/s", "coverage", "corpus", "crashes")
    for column in table.columns[1:]:
        column.justify = "right"
    for outcome in outcomes:
        rate = round(outcome.executions / outcome.seconds)
        figures = (outcome.executions, rate, outcome.coverage, outcome.corpus, len(outcome.crashes))
        table.add_row(outcome.target, *map(str, figures))
    Console().print(table)
    for outcome in outcomes:
        if outcome.failed:
            print(f"\n{outcome.target}:\n" + "\n".join(outcome.output.splitlines()[-_LAST_LINES:]))
        for crash in outcome.crashes:
            path = crash.relative_to(ROOT)
            print(f"\nfound: {path}\nreproduce: {sys.executable} -m fuzz.one {outcome.target} {path}")


def _atheris(target: str, folder: Path, *arguments: str) -> tuple[int, str]:
    """Returns the exit status and the output. The target's temporary files go into `folder`."""
    limits = [f"-timeout={TIMEOUT_SECONDS}", "-rss_limit_mb=2048"]
    command = [sys.executable, "-m", "fuzz.one", target, *limits, *arguments]
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.returncode, done.stdout.decode(errors="replace")


def _words(folder: Path, target: str) -> Path:
    from fuzz.words import dictionary

    path = folder / "words"
    path.write_text(dictionary(target))
    return path


def _number(pattern: str, text: str) -> int:
    """The last number that matches; 0 if none does."""
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
