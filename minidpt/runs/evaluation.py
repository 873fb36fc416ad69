"""Predictions for a test set, and what they are worth: accuracy, confidence.

What is the same for every model is computed once: a test image's pixels, and the frozen CLIP's
feature of it. Zero-shot and CoOp need only that; VPT, VLP and DPT one pass with their prompts.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from statistics import harmonic_mean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..clip.network import CLIP
from ..data.batches import Batch, ImageCache, eval_batches, name_all_broken
from ..data.samples import Sample, copies_note, two_classes_note
from ..images.decode import WhiteLevel
from ..inference import check_probabilities
from ..model import PromptedCLIP
from ..support.distributed import SINGLE, World
from ..support.progress import format_duration, print_line, task_progress

BINS = 15  # of confidence


class EvalSet:
    """Test images for one CLIP: decoded once, their frozen features computed once.

    The pixels are kept after the first pass if they fit in `max_bytes` (14,000 images at 224
    pixels); otherwise each pass decodes again. Ranks share the images (`shard` are this rank's)
    and, on one machine, `max_bytes`. Raises ValueError without samples.
    """

    batch_size, max_bytes = 100, 2 * 1024**3

    def __init__(
        self, samples: list[Sample], clip: CLIP, workers: int | None = None, world: World = SINGLE
    ):
        if not samples:
            raise ValueError("expected test images, got none: give every class at least two images")
        self.samples, self.clip, self.world = samples, clip, world
        self.shard = world.shard(samples)
        self.labels = torch.tensor([sample.label for sample in samples])
        size = len(self.shard) * 3 * clip.visual.resolution**2
        self.keeps_pixels = size <= self.max_bytes // world.local_size
        self.workers, self.white_level = workers, WhiteLevel()
        self._pixels: list[Batch] = []
        self._features: Tensor | None = None

    def set_white_level(self, white_level: WhiteLevel) -> None:
        """Take a run's level of white, to which `features` adds what it lacks."""
        if white_level != self.white_level:
            self._pixels, self._features = [], None
        self.white_level = white_level

    def __len__(self) -> int:
        return len(self.samples)

    def pixels(self, task: str = "test images") -> Iterator[Batch]:
        """Yield batches of uint8 images and labels of its `shard`; `task` names the progress."""
        options = self.clip.visual.resolution, self.batch_size, self.workers, self.white_level.open
        batches = self._pixels or eval_batches(self.shard, *options)
        done, decoded = 0, []
        with task_progress(task, len(self.shard)) as update:
            for batch in batches:
                self.world.check()
                if self.keeps_pixels:
                    decoded.append(batch)
                yield batch
                done += len(batch.labels)
                update(done)
        self._pixels = decoded

    @torch.no_grad()
    def features(self) -> Tensor:
        """Return the frozen CLIP's normalised features (N, E) of its `shard`, on its device.

        Raises ValueError or FileNotFoundError that names all images that cannot be read.
        """
        if self._features is None:
            device = self.clip.device
            parts = [torch.empty(0, self.clip.visual.proj.shape[1], device=device)]
            with name_all_broken([sample.path for sample in self.shard], self.workers):
                for images, _ in self.pixels("test images through zero-shot CLIP"):
                    images = self.clip.normalize(images.to(device))
                    parts.append(self.clip.encode_image(images).float())
            if self.white_level.settle(self.world):
                self._pixels = []
                return self.features()
            self._features = F.normalize(torch.cat(parts), dim=-1)
        return self._features

    def batches(self, images: bool) -> Iterator[tuple[Tensor | None, Tensor]]:
        """Yield images (B, 3, R, R), preprocessed, or None, and frozen features (B, E)."""
        frozen = self.features().split(self.batch_size) if self.shard else ()
        if not images:
            yield from ((None, features) for features in frozen)
            return
        for (pixels, _), features in zip(self.pixels(), frozen, strict=True):
            yield self.clip.normalize(pixels.to(features.device)), features


def read_images(
    model: PromptedCLIP,
    eval_sets: Collection[EvalSet],
    train_set: Sequence[Sample] = (),
    images: ImageCache | None = None,
    workers: int | None = None,
) -> list[str]:
    """Read all images, so that a broken one is an error before anything is written; return notes.

    They share one white level: the model's, completed by that of the test images. With `images`,
    into which `train_set` is read, it is set anew, and the model keeps it.
    """
    world, notes, white_level = model.world, [], WhiteLevel(model.white_level)
    if images is not None:
        paths = [sample.path for sample in train_set]
        test_paths = [sample.path for eval_set in eval_sets for sample in eval_set.samples]
        if world.is_main:
            notes += filter(None, (copies_note(paths, test_paths), two_classes_note(train_set)))
        images.fill(world.shard(paths), workers, world.shard(test_paths), world)
        model.white_level = white_level = images.white_level
    for eval_set in eval_sets:
        eval_set.set_white_level(white_level)
        eval_set.features()
    world.barrier()  # also the slowest has read its images
    return notes + white_level.notes()


class EvalPredictions(NamedTuple):
    """The likeliest class of N test images, its probability, and the five likeliest; on the CPU."""

    predicted: Tensor  # (N,)
    probabilities: Tensor  # (N,)
    top5: Tensor | None = None  # (N, 5), or (N, C) with fewer classes; None if it was not kept


@torch.no_grad()
def predict_eval_set(model: PromptedCLIP, eval_set: EvalSet) -> EvalPredictions:
    """Predict the test images by a model; raises as `check_probabilities`."""
    if not eval_set.shard:
        model.prompt_features()  # for which the other ranks need this one, too
    batches = eval_set.batches(images=model.config.learns_image)
    logits = (model(images, frozen, branches=False).logits for images, frozen in batches)
    return _likeliest(logits, eval_set.world, model.path)


@torch.no_grad()
def zero_shot(model: PromptedCLIP, eval_set: EvalSet) -> EvalPredictions:
    """Predict the test images by the frozen CLIP with the model's template; raises alike."""
    features, batches = model.template_features, eval_set.batches(images=False)
    logits = (model.scaled_cosines(frozen, features) for _, frozen in batches)
    return _likeliest(logits, eval_set.world, f"CLIP {model.clip.name}")


def _likeliest(logits: Iterable[Tensor], world: World, source: str) -> EvalPredictions:
    """Return what the logits (B, C) of each rank's shard predict, in the order of all images."""
    best = []
    for each in logits:
        top5 = each.topk(min(5, each.shape[1])).indices
        best.append((each.argmax(dim=-1), each.softmax(dim=-1).amax(dim=-1), top5))
    shard = map(torch.cat, zip(*best)) if best else torch.empty(3, 0)
    parts = world.all_gather_object([each.tolist() for each in shard])
    predictions = EvalPredictions(*(torch.tensor([*chain(*each)]) for each in zip(*parts)))
    check_probabilities(predictions.probabilities, source)  # at once: each check waits for the GPU
    return predictions


def top1_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of right labels (N,), in percent."""
    return 100 * int((predicted == labels).sum()) / len(labels)


def compute_metrics(
    learned: EvalPredictions, zero_shot: EvalPredictions, labels: Tensor, classes: int
) -> dict[str, float]:
    """Return the result of a test for summary.json: all but `test_images` in percent.

    top5_accuracy: with more than five classes. mean_class_accuracy: over classes with test images.
    mean_confidence: the mean probability of the predicted classes. calibration_error: the expected
    one over 15 bins of equal width (Guo et al. 2017). largest_class_share: of the test images.
    """
    right, confidence = (learned.predicted == labels).double(), learned.probabilities.double()
    counts = labels.bincount()
    class_accuracy = labels.bincount(right)[counts > 0] / counts[counts > 0]
    gaps = (confidence * BINS).ceil().long().bincount(right - confidence)  # sums by bin
    metrics = {
        "zero_shot_accuracy": top1_accuracy(zero_shot.predicted, labels),
        "accuracy": top1_accuracy(learned.predicted, labels),
        "test_images": len(labels),
        "mean_class_accuracy": 100 * class_accuracy.mean().item(),
        "mean_confidence": 100 * confidence.mean().item(),
        "calibration_error": 100 * gaps.abs().sum().item() / len(labels),
        "largest_class_share": 100 * counts.max().item() / len(labels),
    }
    if classes > 5:
        in_top5 = (learned.top5 == labels[:, None]).any(dim=-1)
        metrics["top5_accuracy"] = 100 * int(in_top5.sum()) / len(labels)
    return metrics


def evaluate(
    model: PromptedCLIP, eval_set: EvalSet
) -> tuple[dict[str, float], EvalPredictions, EvalPredictions]:
    """Return a model's `compute_metrics`, its predictions, and zero-shot CLIP's."""
    predictions = predict_eval_set(model, eval_set), zero_shot(model, eval_set)
    metrics = compute_metrics(*predictions, eval_set.labels, len(model.classnames))
    return metrics, *predictions


def describe_metrics(metrics: dict[str, float]) -> str:
    """Return the line that follows the accuracy of a test."""
    right, largest = metrics["accuracy"], metrics["largest_class_share"]
    line = f"mean over classes {metrics['mean_class_accuracy']:.2f} %; "
    if "top5_accuracy" in metrics:
        line += f"top-5 accuracy {metrics['top5_accuracy']:.2f} %; "
    line += f"confidence {metrics['mean_confidence']:.1f} %, right {right:.1f} %"
    below = f"; naming the largest class each time: {largest:.2f} %"
    return line + below if right < largest else line


def print_results(method: str, results: dict[str, dict], seconds: float) -> None:
    """Print the accuracy on the first subset; on others also the harmonic mean of both."""
    (_, first), *others = results.items()
    accuracy, before = first["accuracy"], first["zero_shot_accuracy"]
    gain = "" if method == "zeroshot" else f" ({accuracy - before:+.2f})"
    duration = format_duration(seconds)
    line = f"{method} accuracy {accuracy:.2f} %, zero-shot {before:.2f} %{gain} in {duration}"
    print_line(line, describe_metrics(first))
    for name, other in others:
        new, before = other["accuracy"], other["zero_shot_accuracy"]
        mean = f"harmonic mean with base {harmonic_mean([accuracy, new]):.2f} %"
        print_line(f"{name}: accuracy {new:.2f} %, zero-shot {before:.2f} %; {mean}")
