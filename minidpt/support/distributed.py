"""Processes that share a run, as torchrun starts them: by rank, on torch.distributed.

In training each rank has its share of a batch's images and its share of the classes. It encodes the
prompts of its own classes and gathers the text features of all. Its loss is what its images add to
the loss of the batch, so gradients are summed: those of the text features where they are gathered,
then those of all that is learned, at once. What is learned is the same on every rank.

A process that is `SINGLE` computes as if nothing of this were here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

STEP_TIMEOUT = timedelta(seconds=60)  # with which a rank waits for the others within a step
NO_LABEL = -100  # of an image that counts nothing in a loss (`F.cross_entropy`'s default)

Whole = TypeVar("Whole", Tensor, Sequence)


@dataclass(frozen=True)
class World:
    """This process among those that share a run.

    rank, size: its number, from 0, and how many there are.
    local_rank, local_size: the same among those on this machine.
    store: torch's, which all of them read and write; needed by those that are not alone.
    parent: the id of the process that began this one, torchrun's; without it nobody minds its end.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    store: Any = field(default=None, compare=False, repr=False)
    parent: int | None = field(default=None, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and tells."""
        return self.rank == 0

    def single(self) -> World:
        """The same process with a run of its own, beside the others on this machine."""
        return replace(self, rank=0, size=1)

    def check(self) -> None:
        """Raises PeerLost if the parent was killed: nobody would end this process any more."""
        if self.parent not in (None, os.getppid()):
            raise PeerLost("torchrun, which began this process, has ended")

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        self.check()
        try:
            yield
        except RuntimeError as error:
            raise PeerLost(
                "another of the processes has ended, or has not answered for "
                f"{STEP_TIMEOUT.seconds} s: see its own message"
            ) from error

    def shard(self, whole: Whole) -> Whole:
        """This rank's part of a list or of a tensor's rows: one after the other they are all.

        Parts differ by one element at most; with fewer than ranks some are empty.
        """
        if self.size == 1:
            return whole
        first, last = (len(whole) * rank // self.size for rank in (self.rank, self.rank + 1))
        return whole[first:last]

    def all_gather(self, part: Tensor, count: int) -> Tensor:
        """The rows of all ranks in their order, (count, …), from this rank's share of them.

        Its gradient is the sum over all ranks. Of a part with more rows than the share the first
        are taken: a rank without a share may give what it likes.
        """
        if self.size == 1:
            return part
        return _Gathered.apply(part[: len(self.shard(range(count)))], self, count)

    @torch.no_grad()
    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks of a tensor of one shape, without gradient."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        with self._exchange():
            distributed.all_reduce(total)
        return total

    @torch.no_grad()
    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of parameters over all ranks, in one message; raises as `check`."""
        self.check()  # also one that has a run of its own
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters]
        total = self.all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = total.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def barrier(self) -> None:
        """Wait until every rank has come to here; no time limit."""
        self.all_gather_object(None)

    def all_gather_object(self, content: Any) -> list[Any]:
        """What each rank tells all of them, by rank: anything that JSON can hold.

        They wait for each other, however long one takes. All make the same calls in one order.
        """
        if self.size == 1:
            return [content]
        with self._exchange():
            number = self.store.add(f"messages of {self.rank}", 1)
        self.store_set(f"told {number} by {self.rank}", content)
        return [self.store_get(f"told {number} by {rank}") for rank in range(self.size)]

    def store_set(self, name: str, content: Any) -> None:
        """Lay something that JSON can hold where all ranks find it."""
        with self._exchange():
            self.store.set(name, json.dumps(content))

    def store_get(self, name: str) -> Any:
        """What a rank has `store_set` there, or will have."""
        pause = 0.001
        with self._exchange():
            while not self.store.check([name]):  # and not wait(), during which no signal is heard
                time.sleep(pause)
                pause = min(2 * pause, 0.1)
            return json.loads(self.store.get(name))

    def work_queue(self, count: int) -> Iterator[int]:
        """Numbers below `count`, each to one rank: the next goes to the rank that asks first."""
        if self.size == 1:
            yield from range(count)
            return
        while True:
            with self._exchange():
                number = self.store.add("dealt", 1) - 1
            if number >= count:
                return
            yield number


SINGLE = World()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, world: World, count: int) -> Tensor:
        ctx.world = world
        rows = part.new_zeros(count, *part.shape[1:])
        world.shard(rows)[:] = part
        return world.all_reduce_sum(rows)  # where one rank has its rows the others have zeros

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.world.shard(ctx.world.all_reduce_sum(gradient)), None, None


class PeerLost(ConnectionError):
    """Another process has ended. how_to_resume: the command that goes on with what was begun, if known."""

    how_to_resume = ""


def world_from_environment() -> World:
    """What torchrun says of this process, in its environment; it has joined no other yet.

    Raises ValueError if what is there is not torchrun's.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    got = [os.environ.get(name, "").strip() for name in names]
    if got[1] in ("", "0", "1"):
        return SINGLE
    if not all(value.isdecimal() for value in got) or not int(got[0]) < int(got[1]):
        said = ", ".join(f"{name} {value or '-'}" for name, value in zip(names, got, strict=True))
        raise ValueError(
            f"expected the environment of torchrun, got {said}: start several processes with "
            "torchrun --nproc_per_node=N, or unset WORLD_SIZE for one alone"
        )
    return World(*map(int, got))


def join_world(device: torch.device) -> World:
    """Meet the other processes that torchrun has started; `device` is this one's own.

    Messages go by what torch has for the device: gloo on a CPU, nccl on CUDA.
    """
    world = world_from_environment()
    if world.size == 1:
        return world
    if device.type != "cpu":
        getattr(torch, device.type).set_device(device)
    with world._exchange():
        store, _, _ = next(distributed.rendezvous("env://", timeout=5 * STEP_TIMEOUT))
        distributed.init_process_group(
            store=distributed.PrefixStore("group", store),
            rank=world.rank,
            world_size=world.size,
            timeout=STEP_TIMEOUT,
        )
    return replace(world, store=distributed.PrefixStore("minidpt", store), parent=os.getppid())


def leave_world() -> None:
    """Let go of the others, if any were joined, at an end that all have come to."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
