"""A GGUF file is refused unless its header describes all of its data exactly once."""

import struct
from pathlib import Path

import pytest
import torch

from tests.support.gguf_files import write
from weave.models.files import ModelFilesRefused
from weave.models.gguf import check_gguf_header, is_gguf, read_gguf_header

Q8_0, F32 = 8, 0
TEXT, UINT32 = 8, 4


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes = b"a", sides: tuple[int, ...] = (32, 2), kind: int = Q8_0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


def value(key: bytes, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def file_of(
    *tensors: bytes,
    values: tuple[bytes, ...] = (),
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 96,
    alignment: int = 32,
) -> bytes:
    header = magic + struct.pack("<IQQ", version, *(counts or (len(tensors), len(values))))
    header += b"".join((*values, *tensors))
    return header + bytes(-len(header) % alignment) + bytes(data)


GOOD = {
    "version 2": file_of(tensor(), version=2),
    "version 3": file_of(tensor()),
    "not padded at its end": file_of(tensor(), data=68),
    "two": file_of(tensor(), tensor(b"b", offset=96), data=192),
    "in another order": file_of(tensor(b"b", offset=96), tensor(), data=192),
    "metadata of all types": file_of(
        tensor(),
        values=(
            value(b"template", TEXT, text(b"{{ code }}")),
            value(b"texts", 9, struct.pack("<IQ", TEXT, 2) + text(b"a") + text(b"")),
            value(b"numbers", 9, struct.pack("<IQ", UINT32, 2) + bytes(8)),
            *(value(b"%d" % kind, kind, bytes(size)) for kind, size in {0: 1, 3: 2, 6: 4, 7: 1, 12: 8}.items()),
        ),
    ),
    "another alignment": file_of(
        tensor(), values=(value(b"general.alignment", UINT32, struct.pack("<I", 64)),), alignment=64, data=128
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_header_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GOOD[name])
    found = read_gguf_header(path)
    assert found["a"].tensor == ("Q8_0", (2, 32)) and found["a"].size == 2 * 34
    assert found["a"].begin % 32 == 0 and len(GOOD[name]) >= found["a"].begin + found["a"].size


def alignment(kind: int, data: bytes) -> bytes:
    return file_of(tensor(), values=(value(b"general.alignment", kind, data),))


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it goes on beyond byte 0"),
    "only a magic number": (b"GGUF", "it goes on beyond byte 4"),
    "another magic number": (file_of(tensor(), magic=b"GGML"), "begins with b'GGML'"),
    "version 1": (file_of(tensor(), version=1), "version 1, expected one of 2, 3"),
    "big-endian": (file_of(tensor(), version=3 << 24), "version 50331648"),
    "too many tensors": (file_of(tensor(), counts=(100_001, 0)), "100001 tensors, expected at most 100000"),
    "a huge number of tensors": (file_of(tensor(), counts=(2**64 - 1, 0)), "18446744073709551615 tensors"),
    "too much metadata": (file_of(tensor(), counts=(1, 2**63)), "9223372036854775808 values of metadata"),
    "a tensor more than there is": (file_of(tensor(), counts=(2, 0)), "dimensions|goes on beyond|there is twice"),
    "a text beyond the end": (file_of(values=(value(b"k", TEXT, struct.pack("<Q", 2**63)),)), "it goes on beyond"),
    "a key beyond the end": (file_of(values=(struct.pack("<Q", 2**40),)), "it goes on beyond"),
    "a list beyond the end": (
        file_of(values=(value(b"k", 9, struct.pack("<IQ", UINT32, 2**62)),)), "it goes on beyond"
    ),
    "a list of texts beyond the end": (
        file_of(values=(value(b"k", 9, struct.pack("<IQ", TEXT, 2**62)),)), "it goes on beyond"
    ),
    "a list of lists": (file_of(values=(value(b"k", 9, struct.pack("<IQ", 9, 1)),)), "a list of values of type 9"),
    "a value of an unknown type": (file_of(values=(value(b"k", 13, b""),)), "a value of type 13"),
    "more texts than a tokenizer has": (
        file_of(tensor(), values=(value(b"k", 9, struct.pack("<IQ", 8, 2_000_001) + bytes(8) * 2_000_001),)),
        "more than 2000000 texts",
    ),
    "a key twice": (file_of(tensor(), values=(value(b"k", 0, b"a"),) * 2), "metadata b'k' is there twice"),
    "alignment of zero": (alignment(UINT32, struct.pack("<I", 0)), "general.alignment is not a power of two"),
    "alignment of 48": (alignment(UINT32, struct.pack("<I", 48)), "general.alignment is not a power of two"),
    "alignment of 2**31": (alignment(UINT32, struct.pack("<I", 2**31)), "general.alignment is not a power of two"),
    "alignment as text": (alignment(TEXT, text(b"32")), "general.alignment is not a power of two"),
    "a name too long": (file_of(tensor(b"a" * 129)), "129 bytes in a tensor's name, expected at most 128"),
    "a name not UTF-8": (file_of(tensor(b"\xff")), "not UTF-8"),
    "a name twice": (file_of(tensor(), tensor(offset=96), data=192), "'a' is there twice"),
    "no dimensions": (file_of(tensor(sides=())), "has 0 dimensions"),
    "five dimensions": (file_of(tensor(sides=(32, 1, 1, 1, 1))), "has 5 dimensions"),
    "a side of zero": (file_of(tensor(sides=(32, 0))), r"is of shape \[0, 32\]"),
    "a side beyond all": (file_of(tensor(sides=(2**63, 2))), "is of shape"),
    "a product beyond 64 bits": (file_of(tensor(sides=(2**40, 2**40, 2**40))), "of data, the header describes"),
    "Q2_K": (file_of(tensor(kind=10)), "is of type Q2_K, expected one of F32"),
    "Q3_K": (file_of(tensor(kind=11)), "is of type Q3_K"),
    "IQ4_NL": (file_of(tensor(kind=20)), "is of type IQ4_NL"),
    "an unknown type": (file_of(tensor(kind=4)), "is of type number 4"),
    "half a block": (file_of(tensor(sides=(48, 2))), "rows of 48 numbers, which are not blocks of 32"),
    "an offset beyond the end": (file_of(tensor(offset=2**63)), "overlap, are not aligned or leave a hole at byte 0"),
    "an offset not aligned": (file_of(tensor(), tensor(b"b", offset=68), data=192), "hole at byte 68"),
    "an overlap": (file_of(tensor(), tensor(b"b", offset=64), data=192), "hole at byte 68"),
    "the same place": (file_of(tensor(), tensor(b"b"), data=96), "hole at byte 68"),
    "a hole": (file_of(tensor(), tensor(b"b", offset=128), data=224), "hole at byte 68"),
    "too short": (file_of(tensor(), data=67), "67 bytes of data, the header describes 68; the download is incomplete"),
    "too long": (file_of(tensor(), data=128), "128 bytes of data, the header describes 68"),
    "ends within the padding": (file_of(tensor(), data=0)[:-5], "0 bytes of data, the header describes 68"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_header_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFilesRefused, match=rf"^model\.gguf: bad GGUF header: .*({message})"):
        check_gguf_header(path)


def changes(content: bytes) -> list[bytes]:
    """With one byte less, or one byte changed."""
    shorter = [content[:length] for length in range(len(content))]
    return shorter + [
        content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :] for at in range(len(content)) for bit in (1, 128)
    ]


def test_no_change_of_a_byte_gives_another_error(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for content in changes(GOOD["metadata of all types"]):
        path.write_bytes(content)
        try:
            found = read_gguf_header(path)
        except ModelFilesRefused:
            continue
        assert all(placed.begin + placed.size <= len(content) for placed in found.values())


def test_the_published_packages_files_are_read(tmp_path: Path) -> None:
    file = write(
        tmp_path / "x.gguf",
        {
            "one": (torch.zeros(3, 36, dtype=torch.uint8), "Q4_0"),
            "two": (torch.zeros(5, 7, dtype=torch.bfloat16), "BF16"),
        },
        {"tokenizer.chat_template": "{{ code }}"},
    )
    assert check_gguf_header(file) == {"one": ("Q4_0", (3, 64)), "two": ("BF16", (5, 7))}


def test_a_file_without_suffix_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    for name, content, expected in (("a", GOOD["two"], True), ("b", b"", False), ("c.safetensors", GOOD["two"], False)):
        (tmp_path / name).write_bytes(content)
        assert is_gguf(tmp_path / name) == expected
