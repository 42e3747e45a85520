"""The target `gguf`: the header of a GGUF file."""

from math import prod
from pathlib import Path

from fuzz.reading import Reader
from weave.models.files import ModelFilesRefused
from weave.models.gguf import BLOCKS, read_gguf_header
from weave.protocol.channel import close_all, sealed_memfd


def gguf(data: bytes) -> None:
    """read_gguf_header: in a file that it accepts each tensor has its bytes behind the header, and shares none."""
    reader = Reader(data)
    following = 0 if reader.byte() & 1 else reader.short()
    file = reader.rest() + bytes(following)
    memfd = sealed_memfd("fuzz", file)
    try:
        found = read_gguf_header(Path(f"/proc/self/fd/{memfd}"))
    except ModelFilesRefused as error:
        assert str(error)
        return
    finally:
        close_all([memfd])
    end = 24  # of the counts
    for placed in sorted(found.values(), key=lambda placed: placed.begin):
        kind, shape = placed.tensor
        assert placed.begin >= end and placed.begin % 8 == 0 and all(side > 0 for side in shape)
        assert placed.size * BLOCKS[kind].numbers == prod(shape) * BLOCKS[kind].bytes
        assert shape[-1] % BLOCKS[kind].numbers == 0
        end = placed.begin + placed.size
    assert end <= len(file)
