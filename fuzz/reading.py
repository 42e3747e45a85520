"""One input of a fuzzer as several decisions."""

from collections.abc import Iterator


class Reader:
    """Takes an input apart from its start. Past its end every number is 0, so that every input says something."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """From 0 to 255."""
        taken = self.take(1)
        return taken[0] if taken else 0

    def short(self) -> int:
        """From 0 to 65535."""
        return self.byte() << 8 | self.byte()

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or as many as are left."""
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """`data` as a socket may give it: `size` bytes at a time."""
    for at in range(0, len(data), size):
        yield data[at : at + size]
