"""Classification of handwritten digits of 8 × 8 pixels by an MLP or a small CNN.

The images are the 1797 that scikit-learn carries (the test part of UCI's optical digits). The file
is read from the folder of the installed scikit-learn, which itself is not imported because that
takes a second.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.api import (
    Batch,
    Metric,
    Problem,
    QuantConv2d,
    QuantLinear,
    Recipe,
    Split,
    Task,
    UsageError,
    Work,
    cross_entropy,
    generator,
    key_of,
    send,
)

CLASSES, SIDE = 10, 8
PARTS: dict[Split, slice] = {
    "train": slice(0, 1000),
    "val": slice(1000, 1297),
    "test": slice(1297, 1797),
}
STEPS = {"xs": 300, "s": 500, "m": 1000}


@dataclass
class Digits(Task):
    """Classification of scikit-learn's digits."""

    name = "digits"
    title = "Handwritten digits, 8 × 8"
    metric = Metric("accuracy", "%", better="higher", digits=1, effect=0.5)
    sizes = {
        "xs": {"width": 32, "channels": 8},
        "s": {"width": 64, "channels": 16},
        "m": {"width": 128, "channels": 32},
    }
    activations = True

    model: Literal["mlp", "cnn"] = "mlp"
    """`mlp`: four linear layers of `width`. `cnn`: three convolutions, of `channels` to four times
    as many, and a linear layer."""

    def recipe(self, size: str) -> Recipe:
        return Recipe(steps=STEPS[size], batch=64, optimizer="adamw", lr=0.01)

    def fingerprint(self) -> str:
        return hashlib.sha256(read_table().encode()).hexdigest()

    def problem(self, size: str, seed: int, batch: int, device: torch.device) -> DigitsProblem:
        start, numbers = generator(self.name, seed, "start"), self.sizes[size]
        model = MLP(numbers["width"]) if self.model == "mlp" else CNN(numbers["channels"])
        initialise_weights(model, start)
        return DigitsProblem(model.to(device), seed, batch, device)


# ---- data ----


def read_table() -> str:
    """Return the file of images: in each line 64 pixels from 0 to 16, and the label."""
    spec = importlib.util.find_spec("sklearn")
    path = None
    if spec and spec.origin:
        path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path is None or not path.is_file():
        raise UsageError(
            "digits: scikit-learn, which carries the images, is not installed: "
            "pip install scikit-learn"
        )
    return gzip.decompress(path.read_bytes()).decode()


@cache
def load_images() -> tuple[Tensor, Tensor]:
    """Return pixels in [0, 1] and labels.

    They are ordered so that in any consecutive images each class has about its share. So the splits
    are slices.
    """
    rows = np.fromstring(read_table().replace("\n", ","), dtype=np.float32, sep=",").reshape(
        -1, SIDE * SIDE + 1
    )
    labels = rows[:, -1].astype(np.int64)
    # Within its class an image stands where the hash of its index puts it. Its relative place there
    # is its relative place among all images.
    hashes = np.array([key_of("digits", "split", index) for index in range(len(labels))])
    place = np.empty(len(labels))
    for label in range(CLASSES):
        members = np.flatnonzero(labels == label)
        place[members[np.argsort(hashes[members])]] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((hashes, place))
    return torch.from_numpy(rows[order, :-1] / 16), torch.from_numpy(labels[order])


# ---- networks ----


class MLP(nn.Sequential):
    """Four linear layers with ReLU between them."""

    def __init__(self, width: int) -> None:
        def layer(inputs: int, outputs: int) -> QuantLinear:
            return QuantLinear(inputs, outputs, unsigned_input=True)

        hidden = [part for _ in range(2) for part in (layer(width, width), nn.ReLU())]
        super().__init__(layer(SIDE * SIDE, width), nn.ReLU(), *hidden, layer(width, CLASSES))


class CNN(nn.Module):
    """Three convolutions, the mean over all places, and a linear layer.

    The second and third convolution work at half the side.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = QuantConv2d(1, channels, 3, unsigned_input=True)
        self.second = QuantConv2d(channels, 2 * channels, 3, stride=2, unsigned_input=True)
        self.third = QuantConv2d(2 * channels, 4 * channels, 3, unsigned_input=True)
        self.last = QuantLinear(4 * channels, CLASSES, unsigned_input=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (1, SIDE, SIDE))
        for layer in (self.first, self.second, self.third):
            x = F.relu(layer(x))
        return self.last(x.mean((-2, -1)))  # type: ignore[no-any-return]


@torch.no_grad()
def initialise_weights(model: nn.Module, start: torch.Generator) -> None:
    """Draw He's normal start for layers followed by ReLU; biases stay at zero."""
    for module in model.modules():
        if isinstance(module, (QuantLinear, QuantConv2d)):
            module.weight.normal_(0.0, (2 / module.matrix().shape[-1]) ** 0.5, generator=start)


# ---- the problem ----


class DigitsProblem(Problem):
    """The classification of the training images in the order of one seed."""

    seeds_share_data = True

    def __init__(self, model: nn.Module, seed: int, batch: int, device: torch.device) -> None:
        self.model, self.seed, self.count, self.device = model, seed, batch, device
        self.work = Work(labels=batch)

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        pixels, labels = load_images()
        return pixels.to(self.device), labels.to(self.device)

    def split_images(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return the pixels and labels of a split."""
        pixels, labels = self.images
        return pixels[PARTS[split]], labels[PARTS[split]]

    def sample_indices(self, index: int) -> Tensor:
        """Return the images of a batch.

        Batches lie end to end over a new permutation of the training images in each epoch. The
        images of a negative index, which is outside the order, are drawn at random.
        """
        images = PARTS["train"].stop
        if index < 0:
            return torch.randint(
                images, (self.count,), generator=generator("digits", self.seed, "outside", index)
            )
        epoch, first = divmod(index * self.count, images)
        rows = make_permutation(self.seed, epoch, images)[first : first + self.count]
        while len(rows) < self.count:
            epoch += 1
            rows = torch.cat(
                [rows, make_permutation(self.seed, epoch, images)[: self.count - len(rows)]]
            )
        return rows

    def load(self, indices: Tensor) -> Batch:
        # Flat, because `index_select` takes one axis; the axes of runs are put back afterwards.
        rows = send(indices.flatten(), self.device)
        inputs, targets = (
            x.index_select(0, rows).unflatten(0, indices.shape) for x in self.split_images("train")
        )
        return Batch(inputs, targets, self.count)

    def batches(self, split: Split) -> Iterable[Batch]:
        pixels, labels = self.split_images(split)
        return [Batch(pixels, labels, len(labels))]

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        assert batch.targets is not None
        return cross_entropy(output, batch.targets).mean(-1)

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        (batch,) = self.batches(split)
        output = model(batch.inputs)
        return {
            "accuracy": float(compute_accuracy(output, batch)),
            "loss": self.loss(output, batch).item(),
        }

    def score_stacked(self, model: nn.Module, split: Split) -> Tensor:
        (batch,) = self.batches(split)
        pixels, runs = self.split_images(split)[0], len(next(model.parameters()))
        return compute_accuracy(model(pixels.expand(runs, *pixels.shape)), batch)


def compute_accuracy(output: Tensor, batch: Batch) -> Tensor:
    """Return the accuracy of each run in per cent."""
    return 100.0 * (output.argmax(-1) == batch.targets).double().mean(-1)


@lru_cache(maxsize=1024)
def make_permutation(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order of the images in an epoch."""
    return torch.randperm(count, generator=generator("digits", seed, "order", epoch))
