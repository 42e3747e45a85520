"""One line of doctor's."""

from typing import NamedTuple


class Finding(NamedTuple):
    """`verdict` is ok, warn or fail; `advice` says what to do about the last two."""

    check: str
    verdict: str
    detail: str
    advice: str = ""
