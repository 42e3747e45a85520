"""From a seed to the noise that an image begins with (docs/protocol.md, "Seeds")."""

import array
import random

import torch

# In torch's state of a CPU generator: the Mersenne Twister's 624 words, each in 8 bytes.
_WORDS = slice(24, 24 + 624 * 8)


def generator(seed: int) -> torch.Generator:
    """On the CPU whatever the device, so that a seed gives the same noise everywhere.

    torch's own manual_seed uses the lower 32 bits only. A seed that needs more becomes a state by the Mersenne
    Twister's own way for keys of several words, init_by_array, which Python's random has.
    """
    made = torch.Generator("cpu").manual_seed(seed)
    if seed >= 2**32:
        words = array.array("Q", random.Random(seed).getstate()[1][:624])
        state = made.get_state()
        state[_WORDS] = torch.frombuffer(bytearray(words.tobytes()), dtype=torch.uint8)
        made.set_state(state)
    return made


def seed_everything_else(seed: int) -> None:
    """For schedulers that take noise from torch's global generators (stochastic_sampling): no job sees where the one
    before left these."""
    torch.manual_seed(seed)
    torch.set_rng_state(generator(seed).get_state())
