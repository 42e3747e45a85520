"""A seed determines the noise that an image starts from (docs/protocol.md, "Seeds")."""

import array
import random

import torch

# The Mersenne Twister's 624 words in the state of torch's CPU generator, 8 bytes each.
_WORDS = slice(24, 24 + 624 * 8)


def generator(seed: int) -> torch.Generator:
    """Always on the CPU, so that a seed gives the same noise on every device.

    torch's manual_seed uses the lower 32 bits only. A larger seed is expanded to a state by init_by_array, the Mersenne
    Twister's own initialisation from a key of several words, which Python's random implements.
    """
    seeded = torch.Generator("cpu").manual_seed(seed)
    if seed >= 2**32:
        words = array.array("Q", random.Random(seed).getstate()[1][:624])
        state = seeded.get_state()
        state[_WORDS] = torch.frombuffer(bytearray(words.tobytes()), dtype=torch.uint8)
        seeded.set_state(state)
    return seeded


def seed_global_generators(seed: int) -> None:
    """Schedulers with stochastic_sampling take noise from torch's global generators. Seeding them for each image keeps
    one job's noise independent of the jobs before it."""
    torch.manual_seed(seed)
    torch.set_rng_state(generator(seed).get_state())
