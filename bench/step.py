"""What a distillation step and a pass for statistics cost, beside bare loops, the stock trainer and timm's task.

A trainer's slice is a short training; the clock runs from the end of its first step to the end of its last, so that what `train()`
costs once is left out for all.
"""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.task import LogitDistillationTask
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback

import hf_lskd.distillation as distillation
from bench.measure import Result, Slice, alternate, compared
from hf_lskd import DistillationArguments, DistillationTrainer
from hf_lskd.models import load_image_classifier

TEMPERATURE = 2.0
RESNETS = {"student": "resnet18", "teacher": "resnet50", "classes": 100, "size": 64, "batch": 32}
DEMO = {"student": "test_byobnet", "teacher": "test_byobnet", "classes": 141, "size": 20, "batch": 128}


class Noise(Dataset):
    def __init__(self, n: int, size: int, classes: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.images = torch.randn(n, 3, size, size, generator=draw)
        self.labels = torch.randint(0, classes, (n,), generator=draw).tolist()

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
        loss = naive_kl(outputs.logits, targets)
        return (loss, outputs) if return_outputs else loss


def naive_kl(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return TEMPERATURE**2 * F.kl_div(
        (logits / TEMPERATURE).log_softmax(-1), (targets / TEMPERATURE).softmax(-1), reduction="batchmean"
    )


class Clock(TrainerCallback):
    """Seconds a step between the end of the first and the end of the last."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if state.global_step == 1:
            self.started = now
        self.seconds = (now - self.started) / max(state.global_step - 1, 1)


def model(name: str, kind: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    names = [str(i) for i in range(kind["classes"])]
    size = (3, kind["size"], kind["size"])
    return load_image_classifier(name, class_names=names, pretrained=False, data_config={"input_size": size})


def arguments(folder: str, steps: int, batch: int) -> DistillationArguments:
    return DistillationArguments(
        folder, max_steps=steps, per_device_train_batch_size=batch, per_device_eval_batch_size=batch, learning_rate=0.01,
        optim="sgd", optim_args="momentum=0.9,nesterov=true", report_to="none", disable_tqdm=True, save_strategy="no",
        logging_strategy="no", dataloader_pin_memory=False, max_grad_norm=0.0, kd_temperature=TEMPERATURE,
        logging_nan_inf_filter=False,
    )  # fmt: skip


def trainer_slice(trainer_class: type[Trainer], kind: dict[str, Any], data: Dataset, steps: int, folder: str) -> Slice:
    teacher = model(kind["teacher"], kind).eval()
    extra = {"teacher_model": teacher} if issubclass(trainer_class, DistillationTrainer) else {}
    clock = Clock()
    trainer = trainer_class(
        model(kind["student"], kind),
        arguments(folder, steps, kind["batch"]),
        train_dataset=data,
        callbacks=[clock],
        **extra,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.teacher = trainer.teacher if extra else teacher  # type: ignore[attr-defined]

    def slice_() -> float:
        trainer.train()
        return clock.seconds

    return slice_


def loop_slice(step: Callable[[Any], torch.Tensor], student: Any, data: Dataset, batch: int, steps: int) -> Slice:
    """A loop of torch's own: loader, loss, backward, SGD."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def slice_() -> float:
        started = 0.0
        for index, rows in zip(range(steps), DataLoader(data, batch, shuffle=True)):
            optimizer.zero_grad()
            step(rows).backward()
            optimizer.step()
            started = time.perf_counter() if index == 0 else started
        return (time.perf_counter() - started) / (steps - 1)

    return slice_


def bare(kind: dict[str, Any], data: Dataset, steps: int) -> Slice:
    student, teacher = model(kind["student"], kind).train(), model(kind["teacher"], kind).eval()

    def step(rows: Any) -> torch.Tensor:
        with torch.no_grad():
            targets = teacher(pixel_values=rows["pixel_values"]).logits
        return naive_kl(student(pixel_values=rows["pixel_values"]).logits, targets)

    return loop_slice(step, student, data, kind["batch"], steps)


def timms(kind: dict[str, Any], data: Dataset, steps: int) -> Slice:
    student, teacher = (timm.create_model(kind[role], num_classes=kind["classes"]) for role in ("student", "teacher"))
    task = LogitDistillationTask(
        student, teacher, criterion=torch.nn.CrossEntropyLoss(), task_loss_weight=0.0, distill_loss_weight=1.0,
        temperature=TEMPERATURE, verbose=False,
    )  # fmt: skip
    task.train()
    return loop_slice(
        lambda rows: task(rows["pixel_values"], rows["labels"])["loss"], student, data, kind["batch"], steps
    )


def kd_rows(rounds: int) -> list[Result]:
    """ResNet-50 → ResNet-18, 64 px."""
    steps, kind = 4, RESNETS
    distillation.report_teacher = lambda trainer: None  # the step is measured, not the check before the first one
    with tempfile.TemporaryDirectory() as folder:
        data = Noise(steps * kind["batch"], kind["size"], kind["classes"])
        seconds = alternate({
            "ours": trainer_slice(DistillationTrainer, kind, data, steps, folder),
            "bare": bare(kind, data, steps), "timm": timms(kind, data, steps),
        }, max(rounds, 7))  # fmt: skip
    name, meaning = "KD step, ResNet-50 → ResNet-18, 64 px", "ours / peer, time of a step"
    return [
        compared(name, meaning, "bare loop", 1.03, seconds["ours"], seconds["bare"], at_most=True),
        compared(name, meaning, "timm's LogitDistillationTask", 1.0, seconds["ours"], seconds["timm"], at_most=True),
    ]


def trainer_rows(rounds: int) -> list[Result]:
    """The demo's size beside a plain Trainer subclass, and the same beside a bare loop."""
    steps, kind = 30, DEMO
    distillation.report_teacher = lambda trainer: None
    with tempfile.TemporaryDirectory() as folder:
        data = Noise(steps * kind["batch"], kind["size"], kind["classes"])
        seconds = alternate({
            "ours": trainer_slice(DistillationTrainer, kind, data, steps, folder),
            "naive": trainer_slice(NaiveTrainer, kind, data, steps, folder), "bare": bare(kind, data, steps),
        }, max(rounds, 7))  # fmt: skip
    name = "KD step, the demo's size"
    return [
        compared(name, "peer / ours, time of a step", "plain Trainer, naive loss", 1.10, seconds["naive"], seconds["ours"],
                 at_most=False),
        compared(name, "ours / peer, time of a step", "bare loop", 1.03, seconds["ours"], seconds["bare"], at_most=True),
    ]  # fmt: skip


def statistics_slices(examples: int, kind: dict[str, Any], folder: str) -> dict[str, Slice]:
    data = Noise(examples, kind["size"], kind["classes"])
    trainer = DistillationTrainer(model(kind["student"], kind), arguments(folder, 1, kind["batch"]), eval_dataset=data)

    def plain() -> float:
        started = time.perf_counter()
        trainer.model.eval()
        with torch.no_grad():
            for batch in trainer.get_eval_dataloader():
                trainer.model(pixel_values=batch["pixel_values"])
        return time.perf_counter() - started

    def counted() -> float:
        started = time.perf_counter()
        found = trainer.class_statistics()
        assert int(found.count.sum()) == examples
        return time.perf_counter() - started

    return {"plain": plain, "statistics": counted}


def statistics_rows(rounds: int) -> list[Result]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, examples in (("the demo's model", DEMO, 2560), ("ResNet-18, 64 px", RESNETS, 256)):
            seconds = alternate(statistics_slices(examples, {**kind, "batch": 128}, folder), max(rounds, 9))
            found.append(compared(f"statistics pass, {name}", "ours / peer, time of a pass", "plain forward pass", 1.03,
                                  seconds["statistics"], seconds["plain"], at_most=True))  # fmt: skip
    return found
