"""From a seed to noise, to the last bit: docs/protocol.md, "Seeds"."""

import random

import numpy as np
import pytest
import torch

from weave.gpu_worker.seeds import generator, seed_global_generators


def noise(seed: int) -> torch.Tensor:
    return torch.randn(64, generator=generator(seed))


@pytest.mark.parametrize("seed", [0, 1, 5, 2**31, 2**32 - 1])
def test_a_32_bit_seed_equals_torchs(seed: int) -> None:
    assert torch.equal(noise(seed), torch.randn(64, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(
    "seed, expected",
    [
        (5, [-0.486781, -0.603822, -0.558096]),
        (2**32 - 1, [1.219763, -0.392979, 1.023075]),
        (2**32, [-1.347298, 0.827558, 1.033979]),
        (5 + 2**32, [1.025081, 0.685877, 1.45584]),
        (2**53 + 1, [0.409177, 1.590007, 1.148754]),
        (2**63, [-0.974578, 0.035123, -0.848025]),
        (2**64 - 1, [-0.328151, -0.989487, 1.340984]),
    ],
)
def test_noise_does_not_change_between_releases(seed: int, expected: list[float]) -> None:
    assert torch.allclose(torch.randn(3, generator=generator(seed)), torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [2**32, 5 + 2**32, 2**64 - 1])
def test_a_longer_seed_is_the_twisters_key_of_two_words(seed: int) -> None:
    """numpy, Python and torch give the same stream of words for it."""
    words = [seed % 2**32, seed >> 32]
    ours = torch.empty(1000, dtype=torch.int64).random_(0, 2**20, generator=generator(seed))
    numpys = np.random.RandomState(words).randint(0, 2**32, size=2000, dtype=np.uint32)
    pythons = random.Random(seed)
    assert [pythons.getrandbits(32) for _ in range(1000)] == numpys[:1000].tolist()
    # random_ takes each word modulo its range.
    assert ours.tolist() == [int(word) % 2**20 for word in numpys[:1000]]


def test_each_bit_of_a_seed_counts() -> None:
    seeds = [0x0123456789ABCDEF ^ bit for bit in (0, *(1 << n for n in range(64)))]
    assert len({tuple(noise(seed).tolist()) for seed in seeds}) == 65


def test_torchs_own_generator_starts_from_the_seed_too() -> None:
    for seed in (7, 7 + 2**40):
        torch.randn(3)
        seed_global_generators(seed)
        assert torch.equal(torch.randn(64), noise(seed))
