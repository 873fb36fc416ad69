"""Make TorchScript archives, as OpenAI's are, with a torch that calls torch.jit deprecated."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ignore_deprecation() -> Iterator[None]:
    """Ignore the warning that torch.jit is deprecated, whose category differs by version.

    Any other, such as a tracer's, is an error as everywhere in the tests.
    """
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", category)
        yield
