"""DistillationTrainer: what evaluation and prediction say, of the student and of its teacher."""

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_lskd import DistillationTrainer
from tests.conftest import CLASSES, RESNET, Bare, Examples, Make, tiny


def test_evaluation_with_a_teacher_is_the_hard_loss_and_runs_no_teacher(arguments: Make) -> None:
    student, teacher, data = tiny(seed=1), tiny(seed=2), Examples(8)
    trainer = DistillationTrainer(student, arguments(kd_temperature=64.0), eval_dataset=data, teacher_model=teacher)
    teacher.forward = None  # type: ignore[assignment]  # whoever calls it now fails
    metrics = trainer.evaluate()
    expected = F.cross_entropy(student(pixel_values=data.images).logits, data.labels).item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_nll"] == pytest.approx(expected, rel=1e-5)


def test_nll_of_a_ragged_evaluation_weighs_each_example_once(arguments: Make) -> None:
    student, data = tiny(seed=1), Examples(21)
    trainer = DistillationTrainer(
        student, arguments(per_device_eval_batch_size=8, label_smoothing_factor=0.1), eval_dataset=data
    )
    nll = trainer.evaluate()["eval_nll"]
    assert nll == pytest.approx(F.cross_entropy(student(pixel_values=data.images).logits, data.labels).item(), rel=1e-5)


def test_a_module_near_chance_is_warned_of_and_a_good_one_is_not(
    arguments: Make, caplog: pytest.LogCaptureFixture
) -> None:
    data = Examples(60)
    good = tiny(RESNET, seed=2)
    DistillationTrainer(good, arguments(num_train_epochs=12), train_dataset=data).train()
    for teacher, warned in ((good, False), (NeverRight(), True)):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="hf_lskd"):
            DistillationTrainer(
                tiny(RESNET, 1), arguments(max_steps=1), train_dataset=data, teacher_model=teacher
            ).train()
        assert "Teacher: top-1" in caplog.text
        assert ("near chance" in caplog.text) is warned


class NeverRight(nn.Module):
    """Knows the data's prototypes and always names the next class."""

    num_classes = len(CLASSES)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, len(CLASSES), bias=False)
        prototypes = torch.randn(len(CLASSES), 3, 16, 16, generator=torch.Generator().manual_seed(99)).flatten(1)
        self.head.weight.data = prototypes.roll(1, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


def test_prediction_without_labels_hands_over_neither_ids_nor_keywords(arguments: Make) -> None:
    rows = [{key: value for key, value in row.items() if key != "labels"} for row in Examples(6)]
    for model in (tiny(seed=1), Bare()):
        found = DistillationTrainer(model, arguments()).predict(rows)
        expected = model.eval()(Examples(6).images)
        torch.testing.assert_close(torch.tensor(found.predictions), getattr(expected, "logits", expected))


def test_the_teacher_is_measured_on_the_evaluation_set_and_a_stream_is_left_alone(
    arguments: Make, caplog: pytest.LogCaptureFixture
) -> None:
    from datasets import Dataset as Table
    from torch.utils.data import IterableDataset

    data = Examples(40)
    right = NeverRight()
    right.head.weight.data = right.head.weight.data.roll(-1, 0)  # now always right
    table = Table.from_dict({"pixel_values": data.images.tolist(), "labels": data.labels.tolist()}).with_format("torch")

    class Stream(IterableDataset):
        read = 0

        def __iter__(self) -> Any:
            for row in Examples(16, seed=3):
                Stream.read += 1
                yield row

    for evaluation in (table, {"first": data}):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="hf_lskd"):
            args = arguments(max_steps=2, train_sampling_strategy="random")
            trainer = DistillationTrainer(
                Bare(), args, train_dataset=Stream(), eval_dataset=evaluation, teacher_model=right
            )
            trainer.train()
        assert "Teacher: top-1 100.0 % of 40 labels" in caplog.text
    Stream.read = 0
    DistillationTrainer(Bare(), arguments(max_steps=2), train_dataset=Stream(), teacher_model=right).train()
    assert Stream.read <= 24  # two batches of eight, and what the loader reads ahead
