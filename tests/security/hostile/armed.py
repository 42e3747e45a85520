"""Which attack, if any: asked above lock_down(), when files can still be read."""

from pathlib import Path


def attack(place: str) -> str | None:
    file = Path(place)
    try:
        name = file.read_text()
    except FileNotFoundError:
        return None
    file.unlink()
    return name
