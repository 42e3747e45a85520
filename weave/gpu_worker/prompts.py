"""A cache of encoded prompts: a large encoder takes longer than all steps of a fast model."""

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import torch

from weave.config.child_configs import WorkerModel
from weave.protocol.parameters import Parameters

# A dozen prompts with the longest encodings: 512 tokens of 4,096 values, with a negative prompt.
_MOST_BYTES = 64 * 1024 * 1024
# A result that depends on other arguments, such as tensors and images, is not kept.
_PLAIN = (str, int, float, torch.device, torch.dtype)

# In its context, encode_prompt() of this pipeline returns the cached result if there is one.
Encoding: TypeAlias = Callable[[Any], AbstractContextManager[None]]


def not_kept(pipeline: Any) -> AbstractContextManager[None]:
    """An Encoding that leaves the pipeline as it is."""
    return contextlib.nullcontext()


class _Kept(NamedTuple):
    """What encode_prompt() returned, in main memory, with the device that it was on and its size in bytes."""

    value: Any
    device: torch.device
    size: int


class KeptPrompts:
    """A worker's cache. The least recently used encodings are dropped first."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    def encoding(self, model: WorkerModel, parameters: Parameters) -> Encoding:
        """For a job with these `parameters`. Raises OSError if a file of a LoRA or embedding is gone."""
        additions = _additions(model, parameters)

        @contextlib.contextmanager
        def encoding(pipeline: Any) -> Iterator[None]:
            encode = pipeline.encode_prompt

            def encode_prompt(*arguments: Any, **named: Any) -> Any:
                if not _is_plain((arguments, *named.values())):
                    return encode(*arguments, **named)
                key = (additions, type(pipeline).__name__, _hashable((arguments, *sorted(named.items()))))
                if key not in self._kept:
                    self._keep(key, encode(*arguments, **named))
                self._kept.move_to_end(key)
                return _copied(self._kept[key].value, self._kept[key].device)

            pipeline.encode_prompt = encode_prompt
            try:
                yield
            finally:
                del pipeline.encode_prompt

        return encoding

    def _keep(self, key: Hashable, value: Any) -> None:
        """Add a result, and drop old ones. The new one is always kept."""
        tensors = list(_tensors(value))
        kept = _copied(value, torch.device("cpu"))
        self._kept[key] = _Kept(kept, tensors[0].device, sum(tensor.nbytes for tensor in tensors))
        while len(self._kept) > 1 and sum(kept.size for kept in self._kept.values()) > self._most_bytes:
            self._kept.popitem(last=False)


def _additions(model: WorkerModel, parameters: Parameters) -> Hashable:
    """The job's LoRAs and embeddings, which may change what an encoder returns, and the state of each file, which may
    be replaced while the worker runs."""
    loras = {lora.offer.id: lora.path for lora in model.loras}
    embeddings = {embedding.offer.id: embedding.path for embedding in model.embeddings}
    paths = [loras[lora.id] for lora in parameters.loras] + [embeddings[name] for name in parameters.embeddings]
    states = [(found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns) for found in map(os.stat, paths)]
    return (parameters.loras, parameters.embeddings, *states)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, _PLAIN)


def _hashable(value: Any) -> Hashable:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _copied(value: Any, device: torch.device) -> Any:
    """Tensors, and lists and tuples of them, copied to `device`: a pipeline may write to what it gets."""
    if isinstance(value, list | tuple):
        return type(value)(_copied(item, device) for item in value)
    return value.to(device, copy=True) if isinstance(value, torch.Tensor) else value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
