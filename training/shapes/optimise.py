"""Gradient descent for both stages, on two cores.

Each core computes the gradient of its half of a batch. That keeps both busy with little waiting for each other, also
where other programs take their share, unlike two threads inside each operation. The halves are always the same and are
added in the same order, so the weights do not depend on the timing.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")

HALVES = 2

_pool = ThreadPoolExecutor(HALVES)


def in_parallel(calls: Sequence[Callable[[], T]]) -> list[T]:
    """The results, in the order of the calls. None may use the global random generator."""
    return list(_pool.map(lambda call: call(), calls))


class Optimiser:
    """AdamW with clipped gradients and a learning rate that rises and falls once in `steps` steps."""

    def __init__(self, name: str, module: torch.nn.Module, steps: int, rate: float):
        self._name, self._steps, self._done, self._sum = name, steps, 0, 0.0
        self._module = module
        self._adam = torch.optim.AdamW(module.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-3)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._adam, rate, total_steps=steps, pct_start=0.05)
        self._started = time.monotonic()

    def step(self, losses: Sequence[Callable[[], torch.Tensor]]) -> None:
        """One step down the gradient of the mean loss. Parameters that require no gradient stay as they are."""
        learning = [parameter for parameter in self._module.parameters() if parameter.requires_grad]

        def gradient(loss: Callable[[], torch.Tensor]) -> tuple[float, tuple[torch.Tensor, ...]]:
            value = loss()
            return value.item(), torch.autograd.grad(value, learning)

        results = in_parallel([partial(gradient, loss) for loss in losses])
        self._adam.zero_grad(set_to_none=True)
        for parameter, *parts in zip(learning, *(gradients for _, gradients in results), strict=True):
            parameter.grad = torch.stack(parts).mean(0)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        self._adam.step()
        self._schedule.step()
        self._report(sum(value for value, _ in results) / len(results))

    def _report(self, loss: float) -> None:
        """A line every hundred steps."""
        self._done += 1
        self._sum += loss
        if self._done % 100 == 0:
            seconds = time.monotonic() - self._started
            print(
                f"{self._name} {self._done}/{self._steps} loss {self._sum / 100:.4f} after {seconds:.0f} s", flush=True
            )
            self._sum = 0.0
