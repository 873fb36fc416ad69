"""TorchScript archives, as OpenAI's are, made with a torch that calls torch.jit deprecated."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def still_used() -> Iterator[None]:
    """Hears no warning that torch.jit is deprecated (its category differs by version), but any
    other, such as a tracer's."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", category)
        yield
