"""Pictures with class names: what lies in a folder, the few-shot draw, split files, batches.

open_dataset (a folder) or read_split (a list) -> few_shot -> train_batches, test_batches

The user's folder is only ever read.
"""

import json
import os
import random
import threading
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import regex
import torch
from PIL import Image

from .transforms import central_view, open_image, random_view, to_uint8

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
}
DEFAULT_TEMPLATE = "a photo of a {}."


class Item(NamedTuple):
    """One picture: its file, its class as a number from 0, and as a name."""

    path: str
    label: int
    classname: str


@dataclass(frozen=True)
class Dataset:
    """Three lists of pictures with the names that they share.

    `classnames[label]` is the name for prompts, `template` such as "a photo of a {}.". `root` is
    the folder that all paths lie in, `source` one line that says what was recognised from which
    files, `notes` lines that the user should see (classes with few pictures, for example).
    """

    name: str
    root: Path
    classnames: list[str]
    template: str
    train: list[Item]
    val: list[Item]
    test: list[Item]
    source: str
    notes: tuple[str, ...] = ()


# ---- what lies in a folder


def open_dataset(path: str | os.PathLike, seed: int = 1) -> Dataset:
    """Finds out what kind of data set a folder holds, and lists its pictures.

    In this order: Caltech101 (the folder 101_ObjectCategories, or one that has it inside, at most
    two levels up; with CoOp's split file beside it or without), folders train/ and test/ (val/,
    valid/ or validation/ may be there) of class folders, class folders. Where no split is given,
    `seed` draws one: it is not the seed of the few-shot draw, so that all runs share a test set.

    Raises FileNotFoundError or ValueError (one line: expected, got, what to do).
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"data folder {root}: expected a folder, got nothing there")
    if not root.is_dir():
        raise ValueError(f"data folder {root}: expected a folder, got a file: pass its folder")
    if categories := _find_caltech101(root):
        return _open_caltech101(categories, seed)
    if parts := _find_parts(root):
        return _open_parts(root, parts)
    return _split_class_folders(root, root.resolve().name, _class_folders(root), seed)


CALTECH101_SPLIT = "split_zhou_Caltech101.json"
CALTECH101_DROPPED = {"BACKGROUND_Google", "Faces_easy"}
CALTECH101_RENAMED = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}


def _find_caltech101(root: Path) -> Path | None:
    """The folder 101_ObjectCategories at, in or two levels below `root`; one with a split first."""
    if root.resolve().name == "101_ObjectCategories":
        return root
    found = [*root.glob("101_ObjectCategories"), *sorted(root.glob("*/101_ObjectCategories"))]
    found = [folder for folder in found if folder.is_dir()]
    with_split = [folder for folder in found if (folder.parent / CALTECH101_SPLIT).is_file()]
    return next(iter(with_split + found), None)


def _open_caltech101(categories: Path, seed: int) -> Dataset:
    """Caltech101 by its published split where there is one, else by its folders.

    Two folders are dropped and four renamed, as in the published split. A set of other classes in
    the same layout works, too.
    """
    for where in (categories.absolute().parent, categories.resolve().parent):  # may be a link
        if (where / CALTECH101_SPLIT).is_file():
            return read_split(where / CALTECH101_SPLIT, categories, name="Caltech101")
    folders = _class_folders(categories, CALTECH101_RENAMED, CALTECH101_DROPPED)
    published = {folder.name for folder in folders.values()} & set(CALTECH101_RENAMED)
    name = "Caltech101" if published else categories.resolve().parent.name
    return _split_class_folders(categories, name, folders, seed)


_PARTS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


def _find_parts(root: Path) -> dict[str, Path]:
    """The folders train, val and test in `root`; nothing unless train and one more are there."""
    found = {_PARTS[f.name.lower()]: f for f in _sub_folders(root) if f.name.lower() in _PARTS}
    parts = {part: found[part] for part in ("train", "val", "test") if part in found}
    return parts if "train" in parts and len(parts) > 1 else {}


def _open_parts(root: Path, parts: dict[str, Path]) -> Dataset:
    """A data set from folders train, val and test of class folders; labels are those of train."""
    folders = _class_folders(parts["train"])
    _require_classes(parts["train"], folders)
    labels = {name: label for label, name in enumerate(folders)}
    listed = {"train": [], "val": [], "test": []}
    for part, folder in parts.items():
        for name, class_folder in _class_folders(folder).items():
            if name not in labels:
                raise ValueError(
                    f"folder {class_folder}: expected only classes that {parts['train']} has, "
                    f"got '{name}': add training pictures or remove it"
                )
            listed[part] += [Item(f, labels[name], name) for f in _images(class_folder)]
    _require_images(parts["train"], listed["train"], list(folders))

    how = ", ".join(f"{folder.name}/" for folder in parts.values())
    if "test" not in parts:
        listed["test"], listed["val"] = listed["val"], []
        how += f" (no test/, so {parts['val'].name}/ is the test set)"
    if not listed["test"]:
        raise ValueError(
            f"folder {parts.get('test') or parts['val']}: expected pictures in class folders, as "
            f"in {parts['train']}, got none: add some"
        )
    return _dataset(root.resolve().name, root, list(folders), listed, f"folders {how}")


def _split_class_folders(root: Path, name: str, folders: dict[str, Path], seed: int) -> Dataset:
    """A data set from one folder for each class: 50 % train, 20 % val, 30 % test of each class.

    A class of two or more pictures has at least one for training and one for the test.
    """
    _require_classes(root, folders)
    generator = random.Random(seed)
    listed = {"train": [], "val": [], "test": []}
    for label, (classname, folder) in enumerate(folders.items()):
        items = [Item(file, label, classname) for file in _images(folder)]
        generator.shuffle(items)
        train = max(1, round(0.5 * len(items)))
        val = max(0, min(round(0.2 * len(items)), len(items) - train - 1))
        listed["train"] += items[:train]
        listed["val"] += items[train : train + val]
        listed["test"] += items[train + val :]
    _require_images(root, listed["train"], list(folders))
    how = f"class folders in {root}, no split file: drawn 50/20/30 % with the fixed seed {seed}"
    return _dataset(name, root, list(folders), listed, how)


def _dataset(name: str, root: Path, classnames: list[str], listed: dict, how: str) -> Dataset:
    """Puts a Dataset together and describes it in its line `source`."""
    counts = "/".join(str(len(listed[part])) for part in ("train", "val", "test"))
    source = f"{name}: {len(classnames)} classes, {how}, {counts} images (train/val/test)"
    tested = Counter(item.label for item in listed["test"])
    notes = tuple(
        f"class '{classname}' has no test image"
        for label, classname in enumerate(classnames)
        if not tested[label]
    )
    return Dataset(
        name, root, classnames, DEFAULT_TEMPLATE, **listed, source=source, notes=notes
    )


def _require_classes(root: Path, folders: dict[str, Path]) -> None:
    if not folders:
        raise ValueError(
            f"data folder {root}: expected a folder for each class (or train/ and test/ of class "
            f"folders), got no folder in it: make one folder for each class"
        )
    if len(folders) == 1:
        raise ValueError(
            f"data folder {root}: expected at least 2 class folders, got only "
            f"'{next(iter(folders.values())).name}': add a class, or pass the folder of the classes"
        )


def _require_images(folder: Path, items: list[Item], classnames: list[str]) -> None:
    counts = Counter(item.label for item in items)
    empty = [name for label, name in enumerate(classnames) if not counts[label]]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise ValueError(
            f"folder {folder}: expected pictures ({' '.join(sorted(IMAGE_SUFFIXES))}) of every "
            f"class, got none for '{empty[0]}'{more}: add some or remove the folder"
        )


def _sub_folders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"
    )


def _class_folders(
    folder: Path, renamed: dict[str, str] | None = None, dropped: Collection[str] = ()
) -> dict[str, Path]:
    """Class name -> its folder, sorted by the folders' names."""
    folders, seen = {}, {}
    for class_folder in _sub_folders(folder):
        if class_folder.name in dropped:
            continue
        name = (renamed or {}).get(class_folder.name) or readable(class_folder.name)
        other = seen.setdefault(name.casefold(), class_folder)
        if other is not class_folder:  # CLIP reads lower case: both would have the same prompt
            raise ValueError(
                f"folder {folder}: expected a name of its own for each class, got '{other.name}' "
                f"and '{class_folder.name}': rename or merge them"
            )
        folders[name] = class_folder
    return folders


def readable(folder_name: str) -> str:
    """A folder's name as words for a prompt: sea_horse, sea-horse and SeaHorse -> "sea horse"...

    ...the last as "Sea Horse"; the tokenizer ignores case. "iPhone" and "UFOs" stay whole.
    """
    name = os.fsencode(folder_name).decode("utf-8", "replace")  # names that are no valid UTF-8
    name = unicodedata.normalize("NFC", name)  # macOS stores accents apart from their letters
    words = regex.sub(r"(?<=\p{Ll}{2})(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll}{2})", " ", name)
    return " ".join(regex.sub(r"[_-]", " ", words).split()) or name


def _images(folder: Path) -> list[str]:
    """The picture files in a folder and its sub-folders, sorted; hidden ones are left out.

    Links to folders are followed, but never to a folder that was seen or that contains this one.
    """
    real = folder.resolve()
    seen = {str(parent) for parent in real.parents}
    files = []
    for current, names, file_names in os.walk(folder, followlinks=True):
        where = os.path.realpath(current)
        if where in seen:
            names.clear()
            continue
        seen.add(where)
        names[:] = [name for name in names if not name.startswith(".")]
        files += [
            os.path.join(current, name)
            for name in file_names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(files)


# ---- few shots


def few_shot(dataset: Dataset, shots: int, seed: int) -> Dataset:
    """`shots` training pictures of each class, min(shots, 4) of val, the whole test set.

    The published draw, picture for picture (CoOp's protocol): one generator, classes in the order
    of their first picture, first train, then val. A class with fewer pictures gives all it has,
    and a line in `notes` says so. Raises ValueError for less than one shot.
    """
    if shots < 1:
        raise ValueError(f"shots: expected at least 1, got {shots}")
    generator = random.Random(seed)
    train = _draw(dataset.train, shots, generator)
    val = _draw(dataset.val, min(shots, 4), generator)
    counts = Counter(item.label for item in train)
    notes = tuple(
        f"class '{name}' has {counts[label]} images, {shots} shots wanted: using {counts[label]}"
        for label, name in enumerate(dataset.classnames)
        if counts[label] < shots
    )
    return replace(dataset, train=train, val=val, notes=dataset.notes + notes)


def _draw(items: list[Item], count: int, generator: random.Random) -> list[Item]:
    by_label: dict[int, list[Item]] = {}  # keeps the order of first appearance
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    drawn = []
    for own in by_label.values():
        drawn += generator.sample(own, count) if len(own) >= count else own
    return drawn


# ---- split files


def write_split(dataset: Dataset, path: str | os.PathLike) -> None:
    """Writes the three lists as JSON, in the split format that few-shot research uses.

    `{"train": [[path below root, label, class name], ...], "val": ..., "test": ...}`, with "name",
    "root", "template" and "classnames" beside them; one picture a line. Replaces the file at once.
    Raises ValueError if it would lie in the data folder.
    """
    path, root = Path(path), dataset.root.resolve()
    if path.resolve().is_relative_to(root):
        raise ValueError(f"split file {path}: expected a place outside the data folder {root}")
    described = {
        "name": dataset.name,
        "root": str(root),
        "template": dataset.template,
        "classnames": dataset.classnames,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in described.items()]
    for part in ("train", "val", "test"):
        rows = (
            [Path(os.path.relpath(item.path, dataset.root)).as_posix(), item.label, item.classname]
            for item in getattr(dataset, part)
        )
        lines.append(f'"{part}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    os.replace(unfinished, path)


def read_split(
    path: str | os.PathLike, root: str | os.PathLike | None = None, name: str | None = None
) -> Dataset:
    """The data set of a split file, ours or a published one.

    `root` is the folder that its paths start from; None takes the one noted in the file. Raises
    FileNotFoundError if the file, the folder or a listed picture is missing, and ValueError if the
    file is not a split.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"split file {path}: expected a JSON file, got nothing there")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            part: [(str(f), int(label), str(name)) for f, label, name in content.get(part, [])]
            for part in ("train", "val", "test")
        }
        named = {label: name for own in rows.values() for _, label, name in own}
        count = len(content["classnames"]) if "classnames" in content else len(named)
        if count < 1 or any(label not in range(count) for label in named):
            raise ValueError(f"labels {sorted(named)[:1]} to {sorted(named)[-1:]}, {count} classes")
        classnames = content.get("classnames") or [named[label] for label in range(count)]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"split file {path}: expected lists train, val, test of [path, label from 0, class "
            f"name] with every label in use, got {type(error).__name__}: {error}"
        ) from error
    root = root if root is not None else content.get("root")
    if root is None or not Path(root).is_dir():
        raise FileNotFoundError(f"split file {path}: expected its image folder, got {root}")
    listed = {
        part: [Item(os.path.join(root, *file.split("/")), label, name) for file, label, name in own]
        for part, own in rows.items()
    }
    paths = [item.path for own in listed.values() for item in own]
    missing = [file for file in paths if not os.path.exists(file)]
    if missing:
        raise FileNotFoundError(
            f"split file {path}: expected all its pictures in {root}, got {len(missing)} missing, "
            f"the first {missing[0]}"
        )
    name = name or content.get("name") or path.stem
    dataset = _dataset(name, Path(root), classnames, listed, path.name)
    return replace(dataset, template=content.get("template", DEFAULT_TEMPLATE))


# ---- batches


class Batch(NamedTuple):
    """`images` (B, 3, R, R) uint8 for `transforms.normalize`, `labels` (B,) int64."""

    images: torch.Tensor
    labels: torch.Tensor


class ImageStore:
    """Keeps decoded pictures in memory, at most `max_bytes` of them (default 2 GiB).

    What comes first stays and the rest is decoded again each time: epochs go round and round, so
    throwing out the oldest would throw out just what is needed next. Safe to share by threads.
    """

    def __init__(self, max_bytes: int = 2 * 1024**3):
        self.max_bytes = max_bytes
        self.bytes = 0
        self._images: dict[str, Image.Image] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, path: str) -> Image.Image:
        """The RGB picture in a file. Callers must not change it. Raises as `open_image`."""
        image = self._images.get(path)
        if image is None:
            image = open_image(path)
            size = 4 * image.width * image.height  # Pillow stores RGB in 4 bytes a pixel
            with self._lock:
                if path not in self._images and self.bytes + size <= self.max_bytes:
                    self._images[path] = image
                    self.bytes += size
        return image


def train_batches(
    items: list[Item],
    resolution: int,
    batch_size: int,
    seed: int,
    epoch: int,
    store: ImageStore | None = None,
    workers: int = 2,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """One epoch in random order, each picture randomly cropped and mirrored.

    Order and crops depend on `seed`, `epoch` and the place in the epoch alone, so they are the same
    for any number of `workers` (threads: Pillow works outside Python's lock; 0 = in the caller's).
    The last, smaller batch is dropped if there is at least one full one. `pin_memory` for CUDA.

    A broken picture raises its ValueError here, in the consumer. When the consumer stops early,
    by `break` or by an exception, the threads end.
    """
    _check_batches(batch_size, workers)
    order = list(range(len(items)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    if len(items) >= batch_size:
        del order[len(items) - len(items) % batch_size :]
    read = store.get if store is not None else open_image

    def view(place: int) -> np.ndarray:
        generator = random.Random(f"{seed}/{epoch}/{place}")
        return to_uint8(random_view(read(items[order[place]].path), resolution, generator))

    ordered = [items[index] for index in order]
    return _batches(ordered, view, batch_size, workers, pin_memory)


def test_batches(
    items: list[Item],
    resolution: int,
    batch_size: int,
    workers: int = 2,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """All pictures in the given order, the central square of each; the last batch may be small."""
    _check_batches(batch_size, workers)

    def view(place: int) -> np.ndarray:
        return to_uint8(central_view(open_image(items[place].path), resolution))

    return _batches(items, view, batch_size, workers, pin_memory)


def _check_batches(batch_size: int, workers: int) -> None:
    if batch_size < 1 or workers < 0:
        raise ValueError(
            f"expected batch_size >= 1 and workers >= 0, got {batch_size} and {workers}"
        )


def _batches(
    items: list[Item],
    view: Callable[[int], np.ndarray],
    batch_size: int,
    workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """Groups view(0), view(1), ... (each (3, R, R) uint8), computed two batches ahead."""
    # `closing`: a traceback may keep this frame alive, but the threads must end at once.
    with closing(_in_order(view, range(len(items)), workers, 2 * batch_size)) as views:
        for start in range(0, len(items), batch_size):
            part = items[start : start + batch_size]
            arrays = [next(views) for _ in part]
            shape = (len(part), *arrays[0].shape)
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
            np.stack(arrays, out=images.numpy())  # (B, 3, R, R)
            yield Batch(images, torch.tensor([item.label for item in part]))


def _in_order(function: Callable, jobs: Iterable, workers: int, ahead: int) -> Iterator:
    """Yields function(job) for each job, in order, computed by threads up to `ahead` jobs early."""
    if workers == 0:
        yield from map(function, jobs)
        return
    executor = ThreadPoolExecutor(workers, thread_name_prefix="minidpt-images")
    pending = deque()
    try:
        for job in jobs:
            pending.append(executor.submit(function, job))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also when the consumer stops early: the generator is closed at its yield
        executor.shutdown(wait=True, cancel_futures=True)
