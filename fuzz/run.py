"""make fuzz: each target for its share of the time, then a table.

What reaches new code is kept in fuzz/corpus, up to a cap: git carries it. What breaks something lies in fuzz/crashes,
where tests/unit/test_fuzz_corpus.py runs it from then on.
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
MOST_FILES = 60
MOST_BYTES = 20 * 1024
# Longer than any version 1 request that is valid.
LONGEST_INPUT = 8192
# A target that takes so long over one input hangs.
TIMEOUT_SECONDS = 10
# Of a crash: the traceback, and what libFuzzer says of the input.
_LAST_LINES = 40


class Outcome(NamedTuple):
    """What one target did. `output` is what atheris printed; `failed`: it ended otherwise than by its time."""

    target: str
    executions: int
    seconds: float
    coverage: int
    corpus: int
    crashes: list[Path]
    failed: bool
    output: str


def main() -> int:
    """0: nothing was found. 1: something was. 2: there is no atheris."""
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__)
    parser.add_argument("--seconds", type=int, default=120, metavar="N", help="for all targets together (default: 120)")
    parser.add_argument("--discard", action="store_true", help="do not add to the corpus what reaches new code")
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
    """One target in a process of its own, which a crash ends."""
    corpus, crashes = CORPUS / target, CRASHES / target
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    before = set(crashes.iterdir())
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        new = folder / "new"
        new.mkdir()
        options = [f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT}", "-print_final_stats=1"]
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
    """Add to the corpus those of `new` that reach what it does not, the smallest first, as long as there is room."""
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
        if files > MOST_FILES or size > MOST_BYTES:
            return
        (corpus / path.name).write_bytes(path.read_bytes())


def report(outcomes: list[Outcome]) -> None:
    """The table, then each crash with its traceback and the command that shows it again."""
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
    """Its exit status and all that it printed. What the target writes for itself goes into `folder`."""
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
    """The last one; 0 where there is none."""
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
