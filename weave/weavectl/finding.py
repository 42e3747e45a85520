"""One line of doctor's report."""

from typing import NamedTuple


class Finding(NamedTuple):
    """`verdict` is ok, warn or fail; `advice` is how to fix the latter two."""

    check: str
    verdict: str
    detail: str
    advice: str = ""
