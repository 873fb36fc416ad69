"""What eval.py finds on other data, kept beside a run's own results for tables."""

from __future__ import annotations

from ..data.samples import Dataset
from ..files import locked
from .folders import SPLIT, SUMMARY, TRANSFER, TRANSFER_LOCK, RunFolder


def note_transfer(
    run: RunFolder, dataset: Dataset, precision: str, zero_shot: float, result: float
) -> None:
    """Keep a result on other data beside the run's own, for tables; not what train.py tested.

    Its "settings" are those that are not the run's: `read_results` keeps apart what differs there,
    and the same test by other settings has an entry of its own.
    """
    (config, record), trained_root = run.read_config(), run.read_json(SPLIT, root=str)["root"]
    root = str(dataset.root.resolve())
    settings = {
        "tested in": (root, trained_root),
        "tested by": (dataset.template, config.template),
        "tested in precision": (precision, record.precision),
    }
    settings = {name: value for name, (value, own) in settings.items() if value != own}
    tested = dataset.name in noted_tests(run)[0]
    if tested and not settings:
        return
    with locked(run.path(TRANSFER_LOCK)):  # not to lose what another process adds
        _, noted = noted_tests(run)
        taken = tested and root != trained_root  # by other pictures of that name
        entry = ", ".join([dataset.name, *(f"{name} {value}" for name, value in settings.items())])
        noted[entry] = {
            "tested": f"{dataset.name} in {root}" if taken else dataset.name,
            "zero_shot_accuracy": zero_shot,
            "accuracy": result,
            "test_images": len(dataset.test),
            "root": root,
            "template": dataset.template,
            "settings": settings,
        }
        run.write_json(TRANSFER, noted)


def noted_tests(run: RunFolder) -> tuple[dict, dict]:
    """What train.py has tested, and what eval.py has: name → result. Raises as `RunFolder.read_json`."""
    tested = run.read_json(SUMMARY, tests=dict)["tests"] if run.path(SUMMARY).is_file() else {}
    return tested, run.read_json(TRANSFER) if run.path(TRANSFER).is_file() else {}
