"""How far a long job is: told to whoever watches. The package itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Tell = Callable[[int], None]  # is told how much is done
Watch = Callable[[str, "int | None", str], AbstractContextManager[Tell]]  # what, total, its unit


def _unwatched(what: str, total: int | None, unit: str) -> AbstractContextManager[Tell]:
    return nullcontext(lambda done: None)


_watch: ContextVar[Watch] = ContextVar("watch", default=_unwatched)


@contextmanager
def watched_by(watch: Watch) -> Iterator[None]:
    """Long jobs in the block are told to `watch`, which each of them enters as a context."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def is_watched() -> bool:
    """Whether anybody is told."""
    return _watch.get() is not _unwatched


def job(what: str, total: int | None, unit: str = "") -> AbstractContextManager[Tell]:
    """A long job as a context; it tells how much of `total` (None: unknown) is done by then."""
    return _watch.get()(what, total, unit)


def counted(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """The same items, each of them a part of a long job until the next is asked for."""
    with job(what, total) as tell:
        for done, item in enumerate(items, start=1):
            yield item
            tell(done)
