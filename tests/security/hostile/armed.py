"""Which attack a hostile process makes, if any. It is read above lock_down(), while files can still be opened."""

from pathlib import Path

# Replaced in each build.
ORDER = Path("/order/")
attack: str | None = None


def take_order() -> None:
    """The next process finds none."""
    global attack
    if ORDER.exists():
        attack = ORDER.read_text()
        ORDER.unlink()
