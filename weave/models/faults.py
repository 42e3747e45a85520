"""Checks that yield every fault of a model's files. The worker refuses a model at the first, the tools show all."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar

from weave.models.files import ModelFilesRefused

Result = TypeVar("Result")
# Yields faults, each a message that names its file, and returns what was found. It raises ModelFilesRefused for a fault
# that leaves nothing more to check.
Checks: TypeAlias = Generator[str, None, Result]


def refuse_first(checks: Checks[Result]) -> Result:
    """What the checks return. Raises ModelFilesRefused at the first fault, and checks no further."""
    try:
        fault = next(checks)
    except StopIteration as ended:
        found: Result = ended.value
        return found
    raise ModelFilesRefused(fault)


def collect(checks: Checks[Result]) -> tuple[list[str], Result]:
    """Every fault, and what the checks return. Raises ModelFilesRefused only if the checks do."""
    faults = []
    while True:
        try:
            faults.append(next(checks))
        except StopIteration as ended:
            return faults, ended.value


def apart(checks: Checks[Result]) -> Checks[Result | None]:
    """The same checks, apart from those that follow: what they raise is one more fault, and they return None."""
    try:
        return (yield from checks)
    except ModelFilesRefused as error:
        yield str(error)
    except OSError as error:  # a folder that may not be entered; no full path, since messages reach clients
        yield f"{'/'.join(Path(error.filename or 'model').parts[-2:])}: {error.strerror}"
    return None


def fault_of(check: Callable[..., object], *arguments: object) -> Iterator[str]:
    """What `check` raises, as a fault."""
    try:
        check(*arguments)
    except ModelFilesRefused as error:
        yield str(error)
