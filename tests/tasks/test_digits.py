"""The task digits: real images, split once for all seeds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from qbench_tasks import digits
from qbench_tasks.digits import PARTS, Digits, DigitsProblem, load_images

from qbench.errors import UsageError
from qbench.quant.layers import QuantLayer

CPU = torch.device("cpu")


def problem(seed: int = 0, batch: int = 64, size: str = "xs", **options: object) -> DigitsProblem:
    return Digits(**options).problem(size, seed, batch, CPU)  # type: ignore[arg-type]


def test_the_images_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    theirs, labels = load_digits(return_X_y=True)
    ours = torch.cat((load_images()[0] * 16, load_images()[1].unsqueeze(1)), 1).double()
    expected = torch.cat((torch.from_numpy(theirs), torch.from_numpy(labels).unsqueeze(1)), 1)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, expected.tolist()))


def test_scikit_learn_is_not_imported() -> None:
    code = (
        "import sys; from qbench_tasks.digits import load_images; load_images(); "
        "assert not any(m.split('.')[0] == 'sklearn' for m in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )


def test_the_splits_are_disjoint_complete_and_stratified() -> None:
    pixels, labels = load_images()
    assert {name: part.stop - part.start for name, part in PARTS.items()} == {
        "train": 1000,
        "val": 297,
        "test": 500,
    }
    assert sorted(i for part in PARTS.values() for i in range(part.start, part.stop)) == list(
        range(1797)
    )
    for part in PARTS.values():
        shares = torch.bincount(labels[part], minlength=10) / (part.stop - part.start)
        whole = torch.bincount(labels) / len(labels)
        assert (shares - whole).abs().max() < 0.01
    assert pixels.min() == 0 and pixels.max() == 1


def test_an_epoch_is_every_training_image_once() -> None:
    p = problem(batch=64)
    inputs = torch.cat(
        [b.inputs for b in map(p.batch, range(32)) if b.inputs is not None]
    )  # two epochs and a bit, straddling their ends
    train = load_images()[0][PARTS["train"]]
    for epoch in (inputs[:1000], inputs[1000:2000]):
        assert sorted(map(tuple, epoch.tolist())) == sorted(map(tuple, train.tolist()))
    assert not torch.equal(inputs[:1000], inputs[1000:2000])


def test_a_batch_may_be_larger_than_an_epoch() -> None:
    batch = problem(batch=2500).batch(1)
    assert batch.inputs is not None and len(batch.inputs) == 2500


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_the_body_is_quantized_and_its_inputs_cannot_be_negative(model: str) -> None:
    p = problem(model=model)
    every = [m for m in p.model.modules() if isinstance(m, QuantLayer)]
    assert list(p.layers().values()) == every[1:-1] and len(every) == 4
    assert all(layer.unsigned_input for layer in every)
    smallest: list[float] = []
    for layer in every:
        layer.input_quantizer = lambda x: (smallest.append(float(x.detach().min())), x)[1]
    p.model(p.batch(0).inputs)
    assert len(smallest) == 4 and min(smallest) >= 0


def test_the_score_counts_what_is_right() -> None:
    p = problem()
    with torch.no_grad():
        for parameter in p.model.parameters():
            parameter.zero_()
        p.model[-1].bias[3] = 1.0  # type: ignore[index,union-attr]
    labels = load_images()[1][PARTS["test"]]
    assert p.score(p.model, "test")["accuracy"] == pytest.approx(
        100 * (labels == 3).double().mean().item()
    )


def test_without_scikit_learn_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="scikit-learn"):
        Digits().fingerprint()
