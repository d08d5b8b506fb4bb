"""What a distillation step costs, as ratios of medians measured side by side in one run.

    python -m bench.step [ROUNDS] [STEPS]

Rows: DistillationTrainer, the stock Trainer with a naive KD loss in a subclass, and a bare torch loop, all on the demo's model,
batch and optimizer; then the statistics pass against a plain forward pass over the same examples.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer

import hf_lskd.distillation as distillation
from hf_lskd import ClassStatistics, DistillationArguments, DistillationTrainer
from hf_lskd.models import load_image_classifier

CLASSES, SIZE, BATCH = 141, 20, 128
TEMPERATURE = 2.0


class Noise(Dataset):
    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(n, 3, SIZE, SIZE, generator=generator)
        self.labels = torch.randint(0, CLASSES, (n,), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


class NaiveTrainer(Trainer):
    """What one writes first: the loss in compute_loss, from torch's own kl_div."""

    teacher: Any

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        with torch.no_grad():
            targets = self.teacher(pixel_values=inputs["pixel_values"]).logits
        loss = TEMPERATURE**2 * F.kl_div(
            (outputs.logits / TEMPERATURE).log_softmax(-1), (targets / TEMPERATURE).softmax(-1), reduction="batchmean"
        )
        return (loss, outputs) if return_outputs else loss


def model() -> Any:
    torch.manual_seed(0)
    names = [str(i) for i in range(CLASSES)]
    return load_image_classifier(
        "test_byobnet", class_names=names, pretrained=False, data_config={"input_size": (3, SIZE, SIZE)}
    )


def arguments(folder: str, steps: int) -> DistillationArguments:
    return DistillationArguments(
        folder, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=0.1,
        optim="sgd", optim_args="momentum=0.9,nesterov=true",
        report_to="none", disable_tqdm=True, save_strategy="no", logging_strategy="no", dataloader_pin_memory=False, max_grad_norm=0.0,
        kd_temperature=TEMPERATURE, logging_nan_inf_filter=False,
    )  # fmt: skip


def trainer_run(kind: type[Trainer], data: Dataset, steps: int, folder: str) -> Callable[[], None]:
    teacher = model().eval()
    extra = {"teacher_model": teacher} if issubclass(kind, DistillationTrainer) else {}
    trainer = kind(model(), arguments(folder, steps), train_dataset=data, **extra)
    trainer.remove_callback(PrinterCallback)
    trainer.teacher = trainer.teacher if extra else teacher  # type: ignore[attr-defined]
    return lambda: trainer.train() and None


def bare_run(data: Dataset, steps: int) -> Callable[[], None]:
    student, teacher = model(), model().eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    def run() -> None:
        student.train()
        loader = DataLoader(data, BATCH, shuffle=True)
        for _, batch in zip(range(steps), loader):
            logits = student(pixel_values=batch["pixel_values"]).logits
            with torch.no_grad():
                targets = teacher(pixel_values=batch["pixel_values"]).logits
            loss = TEMPERATURE**2 * F.kl_div(
                (logits / TEMPERATURE).log_softmax(-1), (targets / TEMPERATURE).softmax(-1), reduction="batchmean"
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def statistics_runs(data: Dataset, folder: str) -> tuple[Callable[[], None], Callable[[], None]]:
    trainer = DistillationTrainer(model(), arguments(folder, 1), eval_dataset=data)

    def plain() -> None:
        trainer.model.eval()
        with torch.no_grad():
            for batch in trainer.get_eval_dataloader():
                trainer.model(pixel_values=batch["pixel_values"])

    def counted() -> None:
        found: ClassStatistics = trainer.class_statistics()
        assert int(found.count.sum()) == len(data)  # type: ignore[arg-type]

    return counted, plain


def measure(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, in turn, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def show(seconds: dict[str, list[float]], base: str) -> None:
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds[base])]
        print(f"{name:34s} {statistics.median(ratios):5.2f} x {base}   (min {min(ratios):.2f}, max {max(ratios):.2f})")


def main() -> None:
    distillation.report_teacher = lambda trainer: None  # the step is measured, not the check before the first one
    rounds, steps = (int(sys.argv[1]) if len(sys.argv) > 1 else 5), (int(sys.argv[2]) if len(sys.argv) > 2 else 40)
    with tempfile.TemporaryDirectory() as folder:
        data = Noise(steps * BATCH)
        step = {
            "DistillationTrainer": trainer_run(DistillationTrainer, data, steps, folder),
            "stock Trainer, naive KD loss": trainer_run(NaiveTrainer, data, steps, folder),
            "bare loop": bare_run(data, steps),
        }
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, {steps} steps, {rounds} rounds"
        )
        show(measure(step, rounds), "bare loop")
        counted, plain = statistics_runs(data, folder)
        show(measure({"class_statistics": counted, "plain forward pass": plain}, rounds), "plain forward pass")


if __name__ == "__main__":
    main()
