"""Split files: the lists of a data set as JSON, as few-shot research hands them on."""

import json
import os
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

from ..support import files
from .labels_csv import describe_missing, missing_files
from .samples import DEFAULT_TEMPLATE, SPLITS, Dataset, Sample, make_dataset

_FIELDS = {  # of a Dataset, beside its three lists
    **dict.fromkeys(("name", "root", "part"), str | None),
    **dict.fromkeys(("classnames", "drawn", "class_keys"), list | None),
    **{"template": str | list | None, "allow_duplicates": bool | None},
}


def write_split(dataset: Dataset, path: str | os.PathLike) -> None:
    """Write the three lists as JSON, in the split format that few-shot research uses.

    `{"train": [[path below root, label, class name], ...], "val": ..., "test": ...}`, one image a
    line, with `_FIELDS` beside them.
    """
    values = vars(dataset) | {"part": dataset.subset, "root": str(dataset.root.resolve())}
    lines = [f"{json.dumps(name)}: {json.dumps(values[name])}" for name in _FIELDS]
    for split, samples in dataset.splits.items():
        rows = (
            [Path(os.path.relpath(path, dataset.root)).as_posix(), label, classname]
            for path, label, classname in samples
        )
        lines.append(f'"{split}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    with files.atomic_write(path) as unfinished:
        unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def split_content(path: str | os.PathLike) -> dict[str, Any]:
    """Read a split file, ours or a published one; types and labels are checked.

    "train", "val", "test": lists, perhaps empty, of [path, label, class name]; "classnames" by
    label; perhaps more of what `write_split` writes. Raises FileNotFoundError or ValueError.
    """
    where = f"split file {path}"
    kinds = _FIELDS | dict.fromkeys(SPLITS, list | None)
    most = 5 * files.MAX_IMAGES  # separators: a row ["a.png", 0, "a"], and its line's end have 5
    content = files.check_fields(files.read_json(path, where, most), where, **kinds)
    content |= {split: content.get(split) or [] for split in SPLITS}
    expected = "lists train, val, test of [path, label from 0, class name]"
    named: dict[int, str] = {}
    for split in SPLITS:
        for row in content[split]:
            good = type(row) is list and list(map(type, row)) == [str, int, str]
            if not good or named.setdefault(row[1], row[2]) != row[2]:
                cells = row[:4] if type(row) is list else [row]
                got = f"[{', '.join(map(files.short_repr, cells))}] in {split}"
                raise files.input_error(where, f"{expected}, one name for each label", got)
    names = content.get("classnames") or [named.get(label) for label in range(len(named))]
    count = len(names)
    wrong = [label for label in named if not 0 <= label < count or names[label] != named[label]]
    if wrong or not 1 <= count <= files.MAX_CLASSES:
        got = f"label {wrong[0]}, {files.short_repr(named[wrong[0]])}, of " if wrong else ""
        got += f"{count:,} classes"
        raise files.input_error(where, f"{expected} with every label in use", got)
    for number, name in enumerate(names):  # which keeps its "_", as in the published results
        files.validate_name(name, f"{where}, class {number}")
    files.check_class_keys(content.get("class_keys"), count, where)
    return {**content, "classnames": names}


@files.single_line_errors
def read_split(
    path: str | os.PathLike, root: str | os.PathLike | None = None, name: str | None = None
) -> Dataset:
    """Open the data set of a split file, ours or a published one.

    `root` is the folder that its paths start from; None takes the one noted in the file. Raises
    FileNotFoundError for a missing file, folder or image, ValueError for a file that is no split.
    """
    path, content = Path(path), split_content(path)
    classnames, noted = content["classnames"], content.get("root") if root is None else root
    counts = Counter(classnames).items()
    notes = [f"{count} classes are called '{name}'" for name, count in counts if count > 1]
    if noted is None or not os.path.isdir(noted):
        got = f"{noted}, which is missing: pass --image-root"
        raise FileNotFoundError(f"split file {path}: expected its image folder, got {got}")
    root = os.path.realpath(noted) if root is None else root
    start, listed = os.path.join(root, ""), {}
    for split in SPLITS:
        listed[split] = [
            Sample(file if os.path.isabs(file) else start + file.replace("/", os.sep), label, name)
            for file, label, name in content.pop(split)
        ]
    if missing := missing_files(sample.path for sample in chain(*listed.values())):
        got = f"{describe_missing(missing)}: name their folder (eval.py: --image-root)"
        raise FileNotFoundError(f"split file {path}: expected all its images in {root}, got {got}")
    name = name or content.get("name") or path.stem
    return make_dataset(
        name, Path(root), classnames, listed, path.name, notes=tuple(notes),
        template=files.check_template(content.get("template") or DEFAULT_TEMPLATE),
        drawn=tuple(content.get("drawn") or ()) or None, subset=content.get("part") or "all",
        class_keys=content.get("class_keys") or list(classnames),
        allow_duplicates=bool(content.get("allow_duplicates")),
    )  # fmt: skip
