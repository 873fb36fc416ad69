"""The few-shot draw, base and new classes."""

import random
from pathlib import Path

import pytest

from minidpt.data.samples import Dataset, Sample, few_shot, select_classes

# ---- few shots


def listed(counts: dict[int, int], split: str) -> list[Sample]:
    return [
        Sample(f"{split}/{label}/{number}", label, f"class{label}")
        for label, count in counts.items()
        for number in range(count)
    ]


def made_dataset(train, val, classes=3) -> Dataset:
    names = [f"class{label}" for label in range(classes)]
    test = listed({label: 2 for label in range(classes)}, "test")
    return Dataset(
        "made", Path("."), names, "{}.", listed(train, "train"), listed(val, "val"), test, "made"
    )


def test_few_shots_of_seed_1_are_these():
    # random.Random(1).sample of range(9), then range(7), then range(3) for val
    drawn = few_shot(made_dataset({1: 9, 0: 7}, {0: 3}, classes=2), 2, seed=1)
    expected = ["train/1/2", "train/1/1", "train/0/2", "train/0/0"]
    assert [item.path for item in drawn.train] == expected
    assert [item.path for item in drawn.val] == ["val/0/1", "val/0/2"]


def test_fewer_images_than_shots_are_all_used_and_said():
    drawn = few_shot(made_dataset({0: 5, 1: 3, 2: 4}, {0: 2}), 4, seed=0)
    assert [sum(i.label == label for i in drawn.train) for label in range(3)] == [4, 3, 4]
    assert drawn.notes == ("class 'class1' has 3 images, 4 shots wanted: using 3",)
    assert len(drawn.val) == 2 and few_shot(drawn, 4, seed=0).train == drawn.train
    with pytest.raises(ValueError, match="shots: expected at least 1, got 0"):
        few_shot(drawn, 0, seed=0)


def test_few_shots_leave_the_global_generator_alone():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    few_shot(made_dataset({0: 5, 1: 3, 2: 4}, {}), 2, seed=1)
    assert random.random() == expected


# ---- base and new classes


@pytest.mark.parametrize(
    ("classes", "base", "new"),
    [(4, [0, 1], [2, 3]), (5, [0, 1, 2], [3, 4]), (7, [0, 1, 2, 3], [4, 5, 6])],
)
def test_first_half_of_the_labels_rounded_up_is_base(classes, base, new):
    dataset = made_dataset({label: 3 for label in range(classes)}, {0: 1, classes - 1: 2}, classes)
    for which, labels in [("base", base), ("new", new), ("all", base + new)]:
        selected = select_classes(dataset, which)
        assert selected.classnames == [f"class{label}" for label in labels]
        for split in ("train", "val", "test"):
            expected = [
                Sample(path, labels.index(label), name)
                for path, label, name in getattr(dataset, split)
                if label in labels
            ]
            assert getattr(selected, split) == expected
        sizes = "/".join(str(len(selected.splits[split])) for split in ("train", "val", "test"))
        assert selected.template == dataset.template and selected.subset == which
        assert selected.source == f"made; {which}: {len(labels)} classes, {sizes} images"


def test_too_few_classes_and_unknown_words_are_refused():
    dataset = made_dataset({0: 1, 1: 1, 2: 1}, {})
    with pytest.raises(ValueError, match="at least 2 new classes, got 1 of 3: use a data set of"):
        select_classes(dataset, "new")
    with pytest.raises(ValueError, match="expected one of all, base, new, got 'old'"):
        select_classes(dataset, "old")
