"""Processes that share a training, against one process that has it alone.

`distributed_training.py` says what they train; here each of its cases is a test or two.
"""

from __future__ import annotations

import os
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from helpers import distributed_training
from helpers.distributed_training import SIZES, TRAININGS, Trained
from helpers.golden_cases import METHOD_CASES, assert_tensors_equal, load_case
from helpers.image_folders import draw_class_folders
from helpers.run_command import fork_command
from torch import distributed
from torch.distributed import HashStore

from minidpt.data.batches import train_batches
from minidpt.data.samples import Sample
from minidpt.images.decode import open_image
from minidpt.support.distributed import (
    NO_LABEL,
    SINGLE,
    PeerLost,
    World,
    join_world,
    world_from_environment,
)

LOSSES, WEIGHTS = 2e-5, 1e-4  # fp32 sums in another order: absolute, and of the norm

every_size = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory) -> dict[int, list[dict[str, Trained]]]:
    """Number of processes → for each rank what it has trained."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(distributed_training.__file__)
    subprocess.run(fork_command(script, folder), check=True, timeout=120)
    return {
        size: [
            {
                name: Trained(*trained)
                for name, trained in torch.load(
                    folder / f"{rank}-of-{size}.pt", weights_only=True
                ).items()
            }
            for rank in range(size)
        ]
        for size in SIZES
    }


def assert_near(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        difference = (actual[name] - value).norm() / value.norm().clamp(min=1e-30)
        assert difference <= WEIGHTS, (name, difference)


@every_size
@pytest.mark.parametrize("name", TRAININGS)
def test_processes_that_share_a_training_end_where_one_does(name, size, by_rank):
    alone = distributed_training.train(name, SINGLE)
    for trained in (rank[name] for rank in by_rank[size]):
        assert trained.losses == pytest.approx(alone.losses, abs=LOSSES, rel=0)
        assert_near(trained.learned, alone.learned)
        assert_near(trained.changes, alone.changes)
        torch.testing.assert_close(trained.logits, alone.logits, atol=1e-4, rtol=0)


@every_size
@pytest.mark.parametrize("name", METHOD_CASES)
def test_processes_that_share_the_published_training_end_where_that_does(name, size, by_rank):
    case = load_case(name)
    for trained in (rank[f"golden {name}"] for rank in by_rank[size]):
        expected = [float(case.stored[f"traj/loss/{step}"]) for step in range(len(trained.losses))]
        assert trained.losses == pytest.approx(expected, abs=LOSSES, rel=0)
        assert_tensors_equal(trained.learned, case.stored, "traj/final/")


@every_size
def test_what_is_learned_is_the_same_on_every_rank_to_the_bit(size, by_rank):
    first, *others = by_rank[size]
    for name, trained in first.items():
        for other in others:
            for tensor, value in trained.learned.items():
                assert torch.equal(other[name].learned[tensor], value), (name, tensor)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 32])
def test_shares_follow_each_other_and_are_of_one_size_or_one_more(count):
    for size in (1, 2, 3, 5):
        shares = [World(rank, size).shard(range(count)) for rank in range(size)]
        assert [number for share in shares for number in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_copied_and_nobody_is_asked():
    """No process group is there: whoever asked another process would fail."""
    tensor, layer = torch.randn(3, 2), torch.nn.Linear(2, 1)
    for same in (SINGLE.shard(tensor), SINGLE.all_gather(tensor, 3), SINGLE.all_reduce_sum(tensor)):
        assert same is tensor
    SINGLE.all_reduce_gradients(layer.parameters())
    assert layer.weight.grad is None
    assert list(SINGLE.work_queue(3)) == [0, 1, 2]
    assert SINGLE.all_gather_object({"a": 1}) == [{"a": 1}]


def test_sums_over_ranks_leave_their_arguments_alone(monkeypatch):
    def double(total: torch.Tensor) -> None:  # as if the other rank had the same
        assert total.is_contiguous() and not total.requires_grad
        total.mul_(2)

    monkeypatch.setattr(distributed, "all_reduce", double)
    rows = torch.arange(6.0).view(3, 2).requires_grad_()
    before, world = rows.detach().clone(), World(0, 2)
    assert torch.equal(world.all_reduce_sum(rows.T), 2 * before.T)
    world.all_gather(rows, 6).sum().backward()  # this rank's 3 of the 6 rows
    assert torch.equal(rows.detach(), before) and rows.grad.eq(2).all()
    world.all_reduce_gradients([rows])
    assert rows.grad.eq(4).all()


def test_ranks_wait_a_minute_within_a_step_and_five_to_meet(torchrun, monkeypatch):
    calls = []

    def meet(*address, **options):
        calls.append((address, options))
        yield HashStore(), 1, 4

    monkeypatch.setattr(distributed, "rendezvous", meet)
    monkeypatch.setattr(distributed, "init_process_group", lambda **options: calls.append(options))
    world = join_world(torch.device("cpu"))
    assert (world, world.parent) == (World(1, 4, 1, 2), os.getppid())
    (address, options), group = calls
    assert (address, options) == (("env://",), {"timeout": timedelta(minutes=5)})
    del group["store"]
    assert group == {"rank": 1, "world_size": 4, "timeout": timedelta(minutes=1)}


def test_a_run_that_a_process_has_alone_still_shares_the_machine():
    assert World(5, 8, 1, 4).single() == World(0, 1, 1, 4)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_batches_of_all_ranks_are_those_of_one_process(size, batch_size, tmp_path):
    """The same images, cropped in the same way; a rank without any gets a black one."""
    draw_class_folders(tmp_path, {"ox": 6, "gnu": 5})
    items = [Sample(str(path), int(path.parent.name == "gnu"), path.parent.name)
             for path in sorted(tmp_path.rglob("*.png"))]  # fmt: skip

    def rows(batch) -> list[tuple[int, bytes]]:
        pairs = zip(batch.labels.tolist(), batch.images, strict=True)
        return sorted((label, image.numpy().tobytes()) for label, image in pairs)

    options = (items, 4, batch_size, 3, 1, open_image, 0)
    batches = list(map(rows, train_batches(*options)))
    shares = [
        list(map(rows, train_batches(*options, world=World(rank, size)))) for rank in range(size)
    ]
    for number, expected in enumerate(batches):
        parts = [share[number] for share in shares]
        assert sorted(row for shard in parts for row in shard if row[0] != NO_LABEL) == expected
        assert all(len(shard) == 1 for shard in parts if shard[0][0] == NO_LABEL)


ORPHANS = """
import os, signal, time
from minidpt.support.distributed import world_from_environment, PeerLost, World

told, tell = os.pipe()
if not os.fork():
    if os.fork():  # as torchrun, which is killed when its processes train
        os.read(told, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    own = World(0, 2, parent=os.getppid()).single()  # of a sweep; what is shared asks the same
    own.all_reduce_gradients([])
    os.write(tell, b"x")
    until = time.monotonic() + 10
    try:
        while time.monotonic() < until:
            own.all_reduce_gradients([])
    except PeerLost as lost:
        print(lost, flush=True)
"""


def test_a_process_ends_when_torchrun_is_killed(tmp_path):
    (tmp_path / "orphans.py").write_text(ORPHANS)
    ended = subprocess.run(
        fork_command(tmp_path / "orphans.py"), stdout=subprocess.PIPE, text=True, timeout=20
    )
    assert ended.stdout == "torchrun, which began this process, has ended\n"


@pytest.mark.parametrize(
    "meeting",
    [
        lambda world: world.all_reduce_sum(torch.ones(1)),
        lambda world: world.all_gather(torch.ones(1, 2), 2),
        lambda world: world.barrier(),
        lambda world: next(world.work_queue(1)),
    ],
)
def test_processes_meet_no_more_when_torchrun_has_ended(meeting):
    with pytest.raises(PeerLost, match="torchrun"):
        meeting(World(0, 2, parent=-1))


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def torchrun(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)


def test_the_environment_of_torchrun_says_which_process_this_is(torchrun):
    assert world_from_environment() == World(1, 4, 1, 2)


@pytest.mark.parametrize("size", ["", "0", "1", " 1"])
def test_an_environment_of_one_process_is_a_single_one(size, torchrun, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert world_from_environment() is SINGLE


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", ""), ("RANK", "4"), ("WORLD_SIZE", "x"), ("LOCAL_RANK", "-1")]
)
def test_half_an_environment_of_torchrun_is_refused(name, value, torchrun, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"torchrun, got .*{name}={value}[,:].*unset"):
        world_from_environment()
