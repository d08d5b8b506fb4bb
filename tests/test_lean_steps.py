"""What our trainer leaves out of the stock trainer's steps changes nothing that is logged or kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_lskd import DistillationTrainer
from tests.conftest import tiny


class Rows(torch.utils.data.Dataset):
    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.images, self.labels = torch.randn(24, 3, 16, 16, generator=draw), torch.arange(24) % 4

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def logs(kind: type[Trainer], folder: Path, **options: Any) -> tuple[list[dict[str, float]], float]:
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=4, num_train_epochs=2, max_grad_norm=0.0, report_to="none", seed=1,
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, optim="sgd", learning_rate=0.01, **options,
    )  # fmt: skip
    trainer = kind(tiny(), arguments, train_dataset=Rows())
    trainer.train()
    wanted = ("step", "grad_norm", "loss")
    history = [{key: row.get(key) for key in wanted} for row in trainer.state.log_history if "loss" in row]
    return history, trainer.state.total_flos  # type: ignore[return-value]


@pytest.mark.parametrize(
    "options",
    [
        {"logging_strategy": "steps", "logging_steps": 4},
        {"logging_strategy": "steps", "logging_steps": 5, "logging_first_step": True},
        {"logging_strategy": "epoch"},
        {"logging_strategy": "epoch", "gradient_accumulation_steps": 3},
        {"logging_strategy": "no"},
    ],
    ids=str,
)
def test_logged_gradient_norms_and_operations_are_the_stock_trainers(tmp_path: Path, options: dict[str, Any]) -> None:
    ours, our_operations = logs(DistillationTrainer, tmp_path / "ours", **options)
    stock, stock_operations = logs(Trainer, tmp_path / "stock", **options)
    assert our_operations == stock_operations > 0
    assert [row["step"] for row in ours] == [row["step"] for row in stock]
    for one, other in zip(ours, stock):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_the_norm_is_taken_at_steps_that_are_logged_only(tmp_path: Path) -> None:
    taken: list[int] = []

    class Counting(DistillationTrainer):
        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            found = super()._get_grad_norm(model, grad_norm)
            taken.extend([self.state.global_step + 1] if found is not None else [])
            return found

    history, _ = logs(Counting, tmp_path, logging_strategy="steps", logging_steps=4)
    assert taken == [row["step"] for row in history] == [4, 8, 12]


@pytest.mark.parametrize("options", ["momentum=0.9,nesterov=true", "momentum=0.9,dampening=0.1,weight_decay=0.01"])
def test_fused_sgd_trains_as_the_stock_trainers_sgd(tmp_path: Path, options: str) -> None:
    weights = []
    for kind in (DistillationTrainer, Trainer):
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=4, max_steps=6, report_to="none", seed=1, save_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False, optim="sgd", optim_args=options, learning_rate=0.05,
        )  # fmt: skip
        trainer = kind(tiny(seed=3), arguments, train_dataset=Rows())
        trainer.train()
        assert bool(trainer.optimizer.param_groups[0]["fused"]) == (kind is DistillationTrainer)
        weights.append(dict(trainer.model.named_parameters()))
    for name, ours in weights[0].items():
        torch.testing.assert_close(ours, weights[1][name], rtol=1e-4, atol=1e-6)


def of_parameter(parameter: torch.Tensor) -> torch.nn.Module:
    model = torch.nn.Module()
    model.register_parameter("weight", torch.nn.Parameter(parameter))
    return model


@pytest.mark.parametrize(
    ("parameter", "fused"),
    [
        (torch.ones(4, 8), True),
        (torch.ones(4, 8).t(), True),
        (torch.ones(2, 3, 5, 5).to(memory_format=torch.channels_last), True),
        (torch.ones(4, 8)[1:], True),
        (torch.ones(4, 8)[:, :3], False),
        (torch.ones(4, 8)[:, ::2], False),
        (torch.ones(1, 8).expand(4, 8), False),
        (torch.ones(4, dtype=torch.complex64), False),
    ],
    ids=["whole", "transposed", "channels last", "rows", "columns", "every other column", "expanded", "complex"],
)
def test_sgd_is_fused_only_where_each_parameter_is_one_block_of_real_numbers(
    tmp_path: Path, parameter: torch.Tensor, fused: bool
) -> None:
    arguments = TrainingArguments(str(tmp_path), optim="sgd", report_to="none", use_cpu=True)
    _, options = DistillationTrainer.get_optimizer_cls_and_kwargs(arguments, of_parameter(parameter))
    assert ("fused" in options) == fused
    frozen = of_parameter(parameter).requires_grad_(False)
    assert "fused" in DistillationTrainer.get_optimizer_cls_and_kwargs(arguments, frozen)[1]


def test_a_student_whose_weight_is_a_slice_of_its_teachers_trains_as_in_the_stock_trainer(tmp_path: Path) -> None:
    """Such a slice is not one block of memory: a fused step would write into the teacher's other columns."""
    weights, others = [], []
    for kind in (DistillationTrainer, Trainer):
        model, whole = tiny(seed=3), {}
        for name, part in model.named_modules():
            if isinstance(part, torch.nn.Linear):
                whole[name] = torch.cat([part.weight.detach(), torch.ones_like(part.weight)], 1)
                part.weight = torch.nn.Parameter(whole[name][:, : part.in_features])
        assert whole
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=4, max_steps=3, report_to="none", seed=1, save_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False, optim="sgd", optim_args="momentum=0.9", learning_rate=0.05,
        )  # fmt: skip
        trainer = kind(model, arguments, train_dataset=Rows())
        trainer.train()
        weights.append({name: part.detach().clone() for name, part in trainer.model.named_parameters()})
        others.append([part[:, part.shape[1] // 2 :] for part in whole.values()])
    for name, ours in weights[0].items():
        torch.testing.assert_close(ours, weights[1][name], rtol=1e-4, atol=1e-6)
    assert all(bool((part == 1).all()) for parts in others for part in parts)


def test_sgd_is_not_fused_where_gradients_are_sparse_and_other_optimizers_are_the_stock_ones(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), optim="sgd", report_to="none", use_cpu=True)
    for sparse in (False, True):
        model = torch.nn.Sequential(torch.nn.Embedding(4, 2, sparse=sparse))
        _, options = DistillationTrainer.get_optimizer_cls_and_kwargs(arguments, model)
        assert ("fused" in options) == (not sparse)
    arguments = TrainingArguments(str(tmp_path), optim="adamw_torch", report_to="none", use_cpu=True)
    ours = DistillationTrainer.get_optimizer_cls_and_kwargs(arguments)
    assert ours == Trainer.get_optimizer_cls_and_kwargs(arguments)
