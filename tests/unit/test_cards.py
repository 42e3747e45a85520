"""Which NVIDIA card a device of the config is, and which processors are near it."""

from pathlib import Path

import pytest

from tests.support.cards import UUID, make_card
from weave.sandbox.nvidia import Card, card_of, cards, near_processors


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Minors in another order than addresses, one address above ff, one card that the driver has not initialised."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    make_card(tmp_path, "0000:3b:00.0", 1, "0-3,8-11", UUID.format(1))
    make_card(tmp_path, "0000:0a:00.0", 0, "4", "GPU-????????-????-????-????-????????????")
    make_card(tmp_path, "10000:01:00.0", 2, "", UUID.format(2))
    return tmp_path


def test_cards_are_numbered_by_pci_address_as_cuda_does(root: Path) -> None:
    assert cards(root) == [
        Card("0000:0a:00.0", 0, None),
        Card("0000:3b:00.0", 1, UUID.format(1)),
        Card("10000:01:00.0", 2, UUID.format(2)),
    ]
    assert [card_of(f"cuda:{number}", root) for number in range(4)] == [*cards(root), None]


def test_a_card_without_a_device_file_is_not_counted(root: Path) -> None:
    """As in a container that got some of the host's cards: CUDA ignores those that it may not open."""
    (root / "dev/nvidia0").unlink()
    assert card_of("cuda:0", root) == Card("0000:3b:00.0", 1, UUID.format(1))


@pytest.mark.parametrize("device", ["auto", "cuda", "cpu", "cpu:0"])
def test_a_device_without_a_number_has_no_known_card(root: Path, device: str) -> None:
    """CUDA's own order begins with the fastest."""
    assert card_of(device, root) is None


def test_numbers_that_the_environment_redefines_have_no_card(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert card_of("cuda:0", root) is None


@pytest.mark.parametrize("text", ["Device Minor: x", "Device Minor:", "nothing", "GPU UUID: GPU-1"])
def test_a_description_that_cannot_be_read_is_skipped(root: Path, text: str) -> None:
    (root / "proc/driver/nvidia/gpus/0000:0a:00.0/information").write_text(text)
    assert len(cards(root)) == 2


def test_without_the_driver_no_card_is_known(tmp_path: Path) -> None:
    assert cards(tmp_path) == [] and card_of("cuda:0", tmp_path) is None


@pytest.mark.parametrize("text, near", [("0-2,5", {0, 1, 2, 5}), ("7", {7}), ("", set()), ("0-x", set())])
def test_the_processors_near_a_card(root: Path, text: str, near: set[int]) -> None:
    card = cards(root)[1]
    (root / "sys/bus/pci/devices" / card.address / "local_cpulist").write_text(text)
    assert near_processors(card, root) == near
