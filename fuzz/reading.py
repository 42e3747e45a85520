"""Splits a fuzzer's input into several decisions."""

from collections.abc import Iterator


class Reader:
    """Reads an input from its start. Past the end every number is 0, so that every input is valid."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether any bytes are left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """A number from 0 to 255."""
        taken = self.take(1)
        return taken[0] if taken else 0

    def short(self) -> int:
        """A number from 0 to 65535."""
        return self.byte() << 8 | self.byte()

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end."""
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        """All remaining bytes."""
        return self.take(len(self._data))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """`data` in pieces of `size` bytes, as a socket may deliver it."""
    for at in range(0, len(data), size):
        yield data[at : at + size]
