"""python -m fuzz.one TARGET [libFuzzer's options] [FOLDER or FILE...]: one target under atheris. A file is run once:
use this to reproduce a crash."""

import resource
import shlex
import sys

import atheris

# An input that needs more memory than this is a finding.
_MAX_BYTES = 4 * 1024**3


def main() -> None:
    """Only the coverage of `weave`, and of tomllib, guides the fuzzer."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    with atheris.instrument_imports(include=["weave", "tomllib"]):
        from fuzz.targets import TARGETS
    target = sys.argv[1]
    # libFuzzer's -merge restarts itself through a shell, with its first argument as the command.
    command = f"{shlex.quote(sys.executable)} -m fuzz.one {target}"
    atheris.Setup([command, *sys.argv[2:]], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
