"""python -m fuzz.one TARGET [libFuzzer's options] [FOLDER or FILE...]: one target under atheris. A file is run
once, which is how a crash is looked at."""

import resource
import shlex
import sys

import atheris

# An input that asks for more is a finding, not a reason to take the machine's memory.
_MOST_BYTES = 4 * 1024**3


def main() -> None:
    """The package `weave`, and tomllib for its sake, tell the fuzzer which lines an input reached."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    with atheris.instrument_imports(include=["weave", "tomllib"]):
        from fuzz.targets import TARGETS
    target = sys.argv[1]
    # libFuzzer's -merge starts itself again by a shell, as its first argument says.
    command = f"{shlex.quote(sys.executable)} -m fuzz.one {target}"
    atheris.Setup([command, *sys.argv[2:]], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
