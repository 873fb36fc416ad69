"""The public names as a typed project uses them: `mypy --strict tests/typed_use.py` in .ci/run."""

from __future__ import annotations

import torch
from PIL import Image
from torch.optim.sgd import SGD  # torch 2.4 does not export it by type from torch.optim

import minidpt


def use(image: Image.Image, path: str) -> float:
    """Every public name once, with the types that a caller would expect."""
    clip, preprocess = minidpt.load("tiny", device="cpu", quick_gelu=True)
    another: minidpt.CLIP = minidpt.build_clip(dict(clip.state_dict()))
    tokens: torch.Tensor = minidpt.tokenize(["a photo of a dog."])
    features: torch.Tensor = clip.encode_image(preprocess(image)[None])
    texts: torch.Tensor = another.encode_text(tokens)
    config = minidpt.PromptConfig(method=minidpt.METHODS[-1], n_ctx=4)
    model: minidpt.PromptedCLIP = minidpt.build_model(clip, ["a", "b"], ["a {}.", "{}"], config)
    features = model.image_features(preprocess(image)[None], normalize=True)
    output: minidpt.ModelOutput = model(preprocess(image)[None])
    loss: torch.Tensor = model.loss(output, torch.tensor([0]), guidance=True)
    maps: minidpt.AttentionMaps = minidpt.attention_maps(model, preprocess(image)[None])
    rate: float = minidpt.learning_rate(0, 0.01, 10, 1)
    optimizer = SGD(minidpt.parameter_groups(model), lr=rate)
    optimizer.step()
    model.load_published(minidpt.read_published(path))
    model.save(path)
    minidpt.export(model, path)
    best: minidpt.Prediction = minidpt.load_model(path, clip).predict(image, top=1)[0][0]
    for _, result in model.predict_each([path, image], top=1, workers=2):
        if isinstance(result, (ValueError, OSError)):
            raise result
        best = result[0]
    total = float(loss) + float((features @ texts.t()).sum() + maps.tuned.sum())
    return best.probability + total
