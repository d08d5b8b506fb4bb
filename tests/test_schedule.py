"""Learning rates divided by epochs and warmed up from above zero, beside PyTorch's and fairseq's own formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from hf_lskd import DistillationArguments, DistillationTrainer, Seq2SeqDistillationArguments
from hf_lskd.errors import InputError
from hf_lskd.schedule import reshape

EXAMPLES, BATCH = 24, 4
EPOCH = EXAMPLES // BATCH


class Points(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": torch.full((3,), float(index)), "labels": index % 2}


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layer(pixel_values)


def rates(folder: Path, **arguments: Any) -> list[float]:
    """The learning rate of each step of a real training."""
    seen = []

    class Noting(DistillationTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            seen.append(self.optimizer.param_groups[0]["lr"])
            return super().training_step(*args, **kwargs)

    args = DistillationArguments(
        str(folder), per_device_train_batch_size=BATCH, report_to="none", save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, **arguments,
    )  # fmt: skip
    Noting(Linear(), args, train_dataset=Points()).train()
    return seen


def test_a_rate_divided_every_two_epochs_is_pytorchs_step_schedule(tmp_path: Path) -> None:
    ours = rates(
        tmp_path, num_train_epochs=7, learning_rate=0.1, lr_scheduler_type="constant", lr_step_epochs=2, optim="sgd"
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference, theirs = StepLR(optimizer, step_size=2, gamma=0.1), []
    for _ in range(7):
        theirs += [optimizer.param_groups[0]["lr"]] * EPOCH
        optimizer.step()
        reference.step()
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_epochs_are_counted_from_the_data_where_steps_are_given(tmp_path: Path) -> None:
    ours = rates(tmp_path, max_steps=2 * EPOCH + 1, learning_rate=1.0, lr_scheduler_type="constant", lr_step_epochs=1)
    assert ours == pytest.approx([1.0] * EPOCH + [0.1] * EPOCH + [0.01])


def test_a_warm_up_comes_before_and_multiplies(tmp_path: Path) -> None:
    ours = rates(
        tmp_path, num_train_epochs=4, learning_rate=0.1, lr_scheduler_type="constant_with_warmup", warmup_steps=0.25,
        lr_step_epochs=2, lr_step_factor=0.5,
    )  # fmt: skip
    assert ours[:EPOCH] == pytest.approx([0.1 * step / EPOCH for step in range(EPOCH)])
    assert ours[EPOCH : 2 * EPOCH] == pytest.approx([0.1] * EPOCH)
    assert ours[2 * EPOCH :] == pytest.approx([0.05] * 2 * EPOCH)


def test_an_inverse_square_root_warmed_up_from_above_zero_is_fairseqs(tmp_path: Path) -> None:
    peak, start, warmup = 5e-4, 1e-7, 5
    ours = rates(
        tmp_path, max_steps=12, learning_rate=peak, lr_scheduler_type="inverse_sqrt", warmup_steps=warmup,
        warmup_init_lr=start,
    )  # fmt: skip

    def theirs(updates: int) -> float:  # fairseq's inverse_square_root_schedule after so many updates
        if updates < warmup:
            return start + updates * (peak - start) / warmup
        return peak * warmup**0.5 * updates**-0.5

    assert ours == pytest.approx([theirs(updates) for updates in range(12)], rel=1e-9)


def test_without_either_the_schedule_is_transformers_own(tmp_path: Path) -> None:
    ours = rates(tmp_path, max_steps=4, learning_rate=1.0, lr_scheduler_type="linear")
    assert ours == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_schedule_that_watches_the_loss_takes_neither(tmp_path: Path) -> None:
    args = DistillationArguments(str(tmp_path), lr_step_epochs=1)
    plateau = ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    with pytest.raises(InputError, match="function of the step"):
        reshape(plateau, args, 10, 5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr_step_epochs", 0, "lr_step_epochs = 0"),
        ("lr_step_factor", 0.0, "lr_step_factor = 0.0"),
        ("lr_step_factor", 2.0, "lr_step_factor = 2.0"),
        ("warmup_init_lr", -1.0, "warmup_init_lr = -1.0"),
        ("warmup_init_lr", 1.0, "to learning_rate"),
    ],
)
def test_values_out_of_range_are_refused_at_once(tmp_path: Path, key: str, value: Any, message: str) -> None:
    for kind in (DistillationArguments, Seq2SeqDistillationArguments):
        with pytest.raises(InputError, match=message):
            kind(str(tmp_path), **{key: value})
