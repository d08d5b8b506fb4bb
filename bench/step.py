"""What a distillation step and a pass for statistics cost, beside bare loops, the stock trainer and timm's task.

A trainer's slice is a short training; the clock runs from the end of its first step to the end of its last, so that what `train()`
costs once is left out for all. A kind may name a device (its data then lie there from the beginning), `bf16` and `channels_last`.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.task import LogitDistillationTask
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback

from bench.measure import Result, Slice, alternate, compared, now
from hf_lskd import DistillationArguments, DistillationTrainer
from hf_lskd.models import load_image_classifier

TEMPERATURE = 2.0
Kind = dict[str, Any]
RESNETS: Kind = {"student": "resnet18", "teacher": "resnet50", "classes": 100, "size": 64, "batch": 32}
DEMO: Kind = {"student": "test_byobnet", "teacher": "test_byobnet", "classes": 141, "size": 20, "batch": 128}


class Noise(Dataset):
    def __init__(self, n: int, size: int, classes: int, device: str = "cpu") -> None:
        draw = torch.Generator(device).manual_seed(0)
        self.images = torch.randn(n, 3, size, size, generator=draw, device=device)
        self.labels = torch.randint(0, classes, (n,), generator=draw, device=device).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


class NaiveTrainer(Trainer):
    """What one writes first: the loss in compute_loss, from torch's own kl_div."""

    teacher: Any

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        with torch.no_grad(), self.accelerator.autocast():  # the stock trainer's own is around the student alone
            targets = self.teacher(pixel_values=inputs["pixel_values"]).logits.float()
        loss = naive_kl(outputs.logits, targets)
        return (loss, outputs) if return_outputs else loss


def naive_kl(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return TEMPERATURE**2 * F.kl_div(
        (logits / TEMPERATURE).log_softmax(-1), (targets / TEMPERATURE).softmax(-1), reduction="batchmean"
    )


class Clock(TrainerCallback):
    """Seconds a step between the end of the first and the end of the last."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.started = now(args.device.type)
        elif state.global_step == state.max_steps:
            self.seconds = (now(args.device.type) - self.started) / (state.global_step - 1)


def model(name: str, kind: Kind) -> Any:
    torch.manual_seed(0)
    names = [str(i) for i in range(kind["classes"])]
    size = (3, kind["size"], kind["size"])
    return load_image_classifier(name, class_names=names, pretrained=False, data_config={"input_size": size})


def placed(name: str, kind: Kind) -> Any:
    """A model where its kind says, in its memory format."""
    found = model(name, kind).to(kind.get("device", "cpu"))
    return found.to(memory_format=torch.channels_last) if kind.get("channels_last") else found


def under(kind: Kind) -> Any:
    """The precision of a bare loop."""
    return torch.autocast(kind.get("device", "cpu"), torch.bfloat16, enabled=bool(kind.get("bf16")))


def in_format(images: torch.Tensor, kind: Kind) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last) if kind.get("channels_last") else images


def noise(kind: Kind, steps: int) -> Noise:
    return Noise(steps * kind["batch"], kind["size"], kind["classes"], kind.get("device", "cpu"))


def arguments(folder: str, steps: int, batch: int, kind: Kind | None = None) -> DistillationArguments:
    own = {key: True for key in ("bf16", "channels_last") if (kind or {}).get(key)}
    if (kind or {}).get("device") == "cpu":
        own["use_cpu"] = True
    return DistillationArguments(
        folder, max_steps=steps, per_device_train_batch_size=batch, per_device_eval_batch_size=batch, learning_rate=0.01,
        optim="sgd", optim_args="momentum=0.9,nesterov=true", report_to="none", disable_tqdm=True, save_strategy="no",
        logging_strategy="no", dataloader_pin_memory=False, max_grad_norm=0.0, kd_temperature=TEMPERATURE,
        logging_nan_inf_filter=False, **own,
    )  # fmt: skip


def trainer_of(
    trainer_class: type[Trainer], kind: Kind, data: Dataset, steps: int, folder: str, *callbacks: TrainerCallback
) -> Trainer:
    """A trainer with a teacher; the plain `Trainer` has none."""
    extra, teacher = {}, None
    if trainer_class is not Trainer:
        teacher = placed(kind["teacher"], kind).eval()
        extra = {"teacher_model": teacher} if issubclass(trainer_class, DistillationTrainer) else {}
    trainer = trainer_class(
        placed(kind["student"], kind),
        arguments(folder, steps, kind["batch"], kind),
        train_dataset=data,
        callbacks=list(callbacks),
        **extra,
    )
    trainer.remove_callback(PrinterCallback)
    if extra:
        trainer.teacher.reported = True  # the step is measured, not the check before the first one
    else:
        trainer.teacher = teacher  # type: ignore[attr-defined]
    return trainer


def trainer_slice(trainer_class: type[Trainer], kind: Kind, data: Dataset, steps: int, folder: str) -> Slice:
    clock = Clock()
    trainer = trainer_of(trainer_class, kind, data, steps, folder, clock)

    def slice_() -> float:
        trainer.train()
        return clock.seconds

    return slice_


def loop_slice(step: Callable[[Any], torch.Tensor], student: Any, data: Dataset, kind: Kind, steps: int) -> Slice:
    """A loop of torch's own: loader, loss, backward, SGD."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def slice_() -> float:
        started = 0.0
        device = kind.get("device", "cpu")
        for index, rows in zip(range(steps), DataLoader(data, kind["batch"], shuffle=True)):
            optimizer.zero_grad()
            step({key: value.to(device) for key, value in rows.items()}).backward()
            optimizer.step()
            started = now(device) if index == 0 else started
        return (now(device) - started) / (steps - 1)

    return slice_


def bare(kind: Kind, data: Dataset, steps: int) -> Slice:
    student, teacher = placed(kind["student"], kind).train(), placed(kind["teacher"], kind).eval()

    def step(rows: Any) -> torch.Tensor:
        images = in_format(rows["pixel_values"], kind)
        with under(kind):
            with torch.no_grad():
                targets = teacher(pixel_values=images).logits
            logits = student(pixel_values=images).logits
        return naive_kl(logits.float(), targets.float())

    return loop_slice(step, student, data, kind, steps)


def timms(kind: Kind, data: Dataset, steps: int) -> Slice:
    device = kind.get("device", "cpu")
    layout = torch.channels_last if kind.get("channels_last") else torch.preserve_format
    student, teacher = (
        timm.create_model(kind[role], num_classes=kind["classes"]).to(device, memory_format=layout)
        for role in ("student", "teacher")
    )
    task = LogitDistillationTask(
        student, teacher, criterion=torch.nn.CrossEntropyLoss(), task_loss_weight=0.0, distill_loss_weight=1.0,
        temperature=TEMPERATURE, verbose=False, device=torch.device(device),
    )  # fmt: skip
    task.train()

    def step(rows: Any) -> torch.Tensor:
        with under(kind):
            loss: torch.Tensor = task(in_format(rows["pixel_values"], kind), rows["labels"])["loss"]
        return loss

    return loop_slice(step, student, data, kind, steps)


def kd_rows(rounds: int) -> list[Result]:
    """ResNet-50 → ResNet-18, 64 px."""
    steps, kind = 4, RESNETS
    with tempfile.TemporaryDirectory() as folder:
        data = noise(kind, steps)
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
    with tempfile.TemporaryDirectory() as folder:
        data = noise(kind, steps)
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


def statistics_slices(examples: int, kind: Kind, folder: str) -> dict[str, Slice]:
    data = Noise(examples, kind["size"], kind["classes"])
    trainer = DistillationTrainer(model(kind["student"], kind), arguments(folder, 1, kind["batch"]), eval_dataset=data)

    def plain() -> float:
        started = now()
        trainer.model.eval()
        with torch.no_grad():
            for batch in trainer.get_eval_dataloader():
                trainer.model(pixel_values=batch["pixel_values"])
        return now() - started

    def counted() -> float:
        started = now()
        found = trainer.class_statistics()
        assert int(found.count.sum()) == examples
        return now() - started

    return {"plain": plain, "statistics": counted}


def statistics_rows(rounds: int) -> list[Result]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, examples in (("the demo's model", DEMO, 2560), ("ResNet-18, 64 px", RESNETS, 256)):
            seconds = alternate(statistics_slices(examples, {**kind, "batch": 128}, folder), max(rounds, 9))
            found.append(compared(f"statistics pass, {name}", "ours / peer, time of a pass", "plain forward pass", 1.03,
                                  seconds["statistics"], seconds["plain"], at_most=True))  # fmt: skip
    return found
