"""Processes that share a run, as torchrun starts them: by rank, on torch.distributed.

In training each rank has its shard of a batch's images and its shard of the classes. It encodes the
prompts of its classes and gathers the text features of all. Its loss is what its images add to the
loss of the batch, so gradients are summed: those of the text features where they are gathered,
then those of all parameters, at once. The parameters are the same on every rank.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

STEP_TIMEOUT = timedelta(seconds=60)  # for which a rank waits for the others within a step
NO_LABEL = -100  # of an image that counts nothing in a loss (`F.cross_entropy`'s default)


@dataclass(frozen=True)
class World:
    """The processes that share a run, as one of them sees them."""

    rank: int = 0  # its number
    size: int = 1  # how many there are
    local_rank: int = 0  # the same among those on this machine
    local_size: int = 1
    store: Any = field(default=None, compare=False, repr=False)  # torch's, which all share
    # The id of torchrun, which started this process; None: it may end.
    parent: int | None = field(default=None, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def single(self) -> "World":
        """Return a world of this process alone, for a run that it does not share."""
        return replace(self, rank=0, size=1)

    def check(self) -> None:
        """Raise PeerLost if torchrun was killed: nobody would end this process any more."""
        if self.parent not in (None, os.getppid()):
            raise PeerLost("torchrun, which began this process, has ended")

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        self.check()
        try:
            yield
        except RuntimeError as error:
            silence = f"did not answer for {STEP_TIMEOUT.seconds} s: see its message"
            raise PeerLost(f"another process ended, or {silence}") from error

    def shard(self, rows: Any) -> Any:
        """Return this rank's part of a list or of a tensor's rows; the parts follow each other.

        Their sizes differ by one at most; with fewer rows than ranks some are empty.
        """
        if self.size == 1:
            return rows
        first, last = (len(rows) * rank // self.size for rank in (self.rank, self.rank + 1))
        return rows[first:last]

    def all_gather(self, shard: Tensor, count: int) -> Tensor:
        """Gather the rows of all ranks in their order, (count, …), from each rank's shard.

        Its gradient is the sum over all ranks. Rows beyond the shard are left out: a rank whose
        shard is empty may pass any.
        """
        if self.size == 1:
            return shard
        return _AllGather.apply(shard[: len(self.shard(range(count)))], self, count)

    @torch.no_grad()
    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks of a tensor of one shape, without gradient."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        with self._exchange():
            distributed.all_reduce(total)
        return total

    @torch.no_grad()
    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of parameters over all ranks, in one message; raise as `check`."""
        self.check()  # also with a run that it does not share
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters]
        total = self.all_reduce_sum(parameters_to_vector(gradients))
        vector_to_parameters(total, gradients)

    def barrier(self) -> None:
        """Wait for every rank to come here; no time limit."""
        self.all_gather_object(None)

    def all_gather_object(self, content: Any) -> list[Any]:
        """Gather a JSON-serialisable object from every rank, in rank order; no time limit.

        All ranks make the same calls in one order.
        """
        if self.size == 1:
            return [content]
        with self._exchange():
            number = self.store.add(f"messages of {self.rank}", 1)
            names = [f"message {number} of {rank}" for rank in range(self.size)]
            self.store.set(names[self.rank], json.dumps(content))
            pause = 0.001
            while not self.store.check(names):  # and not wait(), during which no signal is heard
                time.sleep(pause)
                pause = min(2 * pause, 0.1)
            return [json.loads(self.store.get(name)) for name in names]

    def work_queue(self, count: int) -> Iterator[int]:
        """Yield numbers below `count`, each on one rank: the next goes to the first that asks."""
        for number in range(count):
            if self.size > 1:
                with self._exchange():
                    number = self.store.add("taken from the queue", 1) - 1
            if number < count:
                yield number


SINGLE = World()


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shard: Tensor, world: World, count: int) -> Tensor:
        ctx.world = world
        rows = shard.new_zeros(count, *shard.shape[1:])
        world.shard(rows)[:] = shard
        return world.all_reduce_sum(rows)  # where one rank has its rows the others have zeros

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.world.shard(ctx.world.all_reduce_sum(gradient)), None, None


class PeerLost(ConnectionError):
    """Another process has ended."""


def world_from_environment() -> World:
    """Read from torchrun's environment which process this is; it has joined no other yet.

    Raises ValueError for an environment that is not torchrun's.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = [os.environ.get(name, "").strip() for name in names]
    if values[1] in ("", "0", "1"):
        return SINGLE
    if not all(map(str.isdecimal, values)) or int(values[0]) >= int(values[1]):
        fix = "start with torchrun --nproc_per_node=N, or unset WORLD_SIZE for one process"
        got = ", ".join(map("{}={}".format, names, values))
        raise ValueError(f"expected the environment of torchrun, got {got}: {fix}")
    return World(*map(int, values))


def join_world(device: torch.device) -> World:
    """Meet the other processes that torchrun has started; `device` is this process's.

    Messages go by what torch has for the device: gloo on a CPU, nccl on CUDA.
    """
    world = world_from_environment()
    if world.size == 1:
        return world
    if device.type != "cpu":
        getattr(torch, device.type).set_device(device)
    with world._exchange():
        store, _, _ = next(distributed.rendezvous("env://", timeout=5 * STEP_TIMEOUT))
        group = dict(rank=world.rank, world_size=world.size, timeout=STEP_TIMEOUT)
        distributed.init_process_group(store=distributed.PrefixStore("group", store), **group)
    return replace(world, store=distributed.PrefixStore("minidpt", store), parent=os.getppid())


def leave_world() -> None:
    """Leave the other processes, if any were joined, at an end that all have come to."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
