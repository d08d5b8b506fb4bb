"""Value and gradient of cross-entropy and KL, beside what one writes first."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import Result, alternate, compared, peak_memory, timed
from hf_lskd import distillation_loss

TEMPERATURE, WEIGHT = 2.0, 0.5
SIZES = {(1024, 10_000): 3.0, (256, 32_000): 3.0, (256, 1_000): 2.5}
MEANING = "naive / ours, time of value and gradient"


def naive(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """As in torch's own tutorials."""
    soft = F.kl_div(
        F.log_softmax(student / TEMPERATURE, -1), F.softmax(teacher / TEMPERATURE, -1), reduction="batchmean"
    )
    return (1 - WEIGHT) * F.cross_entropy(student, labels) + WEIGHT * TEMPERATURE**2 * soft


def ours(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return distillation_loss(student, teacher, labels, temperature=TEMPERATURE, kd_weight=WEIGHT).total


def batch(
    rows: int, classes: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and labels."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = ((3 * torch.randn(rows, classes, generator=draw)).to(device, dtype) for _ in range(2))
    return student.requires_grad_(True), teacher, torch.randint(0, classes, (rows,), generator=draw).to(device)


def run_of(
    loss: Callable[..., Tensor], rows: int, classes: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    student, teacher, labels = batch(rows, classes, device, dtype)

    def run() -> None:
        loss(student, teacher, labels).backward()
        student.grad = None

    return run


def rows(rounds: int) -> list[Result]:
    found = []
    for (count, classes), aim in SIZES.items():
        runs = {"naive": run_of(naive, count, classes), "ours": run_of(ours, count, classes)}
        times = max(1, 4_000_000 // (count * classes))
        seconds = alternate({name: timed(run, times) for name, run in runs.items()}, max(rounds, 9))
        logits = 4 * count * classes
        memory = {name: round(peak / logits, 2) for name, run in runs.items() if (peak := peak_memory(run)) is not None}
        found.append(compared(
            f"loss [{count} × {classes}]", MEANING, "naive torch composition", aim, seconds["naive"], seconds["ours"],
            at_most=False, memory=memory, note="memory in units of the logits, aim ≤ 1.2",
        ))  # fmt: skip
    return found
