"""What a translator's steps, evaluation, statistics and token batches come to on however many processes run this.

python -m tests.seq2seq_run FOLDER      under RANK, WORLD_SIZE, …; writes FOLDER/rank<k>.pt
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_lskd import Seq2SeqDistillationTrainer
from tests.conftest import weights
from tests.process_run import world
from tests.resume_run import StopAfter, StoppedError
from tests.tiny_seq2seq import FAMILIES, Rows, arguments, steps, tiny_seq2seq, tokenizer, trainer

SIZES = (3, 9, 0, 0, 7, 5, 4, 8, 6, 1, 2, 10)  # a window of 8 rows with a micro-batch of padding, and a short one of 4
TEACHING = {
    f"alpha {alpha}, {'alone' if t is None else f'T {t}'}": {
        "label_smoothing_factor": alpha,
        "teacher": t is not None,
        "kd_temperature": float(t or 1),
    }
    for alpha in (0.0, 0.1)
    for t in (None, 1, 3)
}
HARDEST = "alpha 0.1, T 3"
STEPS = {
    **{f"marian, {name}, {cut}": ("marian", name, cut) for name in TEACHING for cut in (1, 2, 4)},
    **{f"{family}, {HARDEST}, 2": (family, HARDEST, 2) for family in FAMILIES if family != "marian"},
}
FIVE = Rows((4, 9, 2, 6, 3), seed=3)
MAX_TOKENS = 30
TOKEN_ROWS = Rows(tuple(2 + (7 * i) % 11 for i in range(37)), seed=5)


def gradients(folder: Path, name: str) -> list[torch.Tensor]:
    """One window of 8 rows and, where it can be dealt out, a short one; `cut` is the number of micro-batches of the first."""
    family, teaching, cut = STEPS[name]
    rows = Rows(SIZES[:8] if cut == 1 else SIZES, seed=1)
    return steps(folder, family, rows, 8 // cut // world(), cut, **TEACHING[teaching])[0]


def trained(folder: Path) -> dict[str, Any]:
    """Weights after steps that move them, and how many processes came up."""
    args = arguments(
        folder, per_device_train_batch_size=4 // world(), gradient_accumulation_steps=2, kd_weight=0.5,
        kd_temperature=3.0, label_smoothing_factor=0.1, num_train_epochs=2,
    )  # fmt: skip
    made = trainer(tiny_seq2seq("bart", 1), args, Rows(SIZES, seed=1), teacher_model=tiny_seq2seq("bart", 2))
    made.train()
    return {"weights": weights(made.model), "world": made.accelerator.num_processes}


def evaluated(folder: Path, generate: bool) -> dict[str, Any]:
    """What `evaluate` and `predict` give, and `compute_metrics` gets, of five rows in batches of two."""
    seen: list[Any] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"rows": float(len(prediction.predictions))}

    args = arguments(folder, predict_with_generate=generate, generation_max_length=9)
    made = trainer(
        tiny_seq2seq("marian", 1), args, eval_dataset=FIVE, compute_metrics=metrics, processing_class=tokenizer(),
    )  # fmt: skip
    measured = made.evaluate()
    predicted = made.predict(FIVE)
    return {
        "metrics": measured,
        "predictions": predicted.predictions,
        "labels": predicted.label_ids,
        "test_nll": predicted.metrics["test_nll"],
        "seen": seen,
    }


def states(folder: Path, family: str) -> dict[str, Any]:
    """Class statistics of five rows in float64 (FSMT's mask does without), and this process's share of the decoder's states."""
    model = tiny_seq2seq(family, 1)
    model = model if family == "fsmt" else model.double()
    made = trainer(model, arguments(folder), eval_dataset=FIVE)
    batches = list(made.penultimate())
    return {
        "statistics": made.class_statistics().to_tensors(),
        **{part: torch.cat([getattr(batch, part) for batch in batches]) for part in batches[0]._fields},
    }


class Batches(TrainerCallback):
    """The batches that this process trained on, epoch by epoch, as ids and padded tokens."""

    def __init__(self) -> None:
        self.epochs: list[list[tuple[list[int], int]]] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.epochs.append([])


class Watching(Seq2SeqDistillationTrainer):
    """Notes the batches that it trains on."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        noted = next((one for one in self.callback_handler.callbacks if isinstance(one, Batches)), None)
        if model.training and noted is not None:
            side = max(inputs["input_ids"].shape[1], inputs["labels"].shape[1])
            noted.epochs[-1].append((inputs["example_id"].tolist(), side * len(inputs["labels"])))
        return super().compute_loss(model, inputs, *args, **kwargs)


def by_tokens(folder: Path, *callbacks: Any, **more: Any) -> Any:
    """A trainer with dropout on batches of at most `MAX_TOKENS` tokens."""
    model = tiny_seq2seq("marian", 1)
    model.config.dropout = 0.2
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.2
    args = arguments(folder, max_tokens=MAX_TOKENS, **{"num_train_epochs": 2, "kd_weight": 0.5, **more})
    made = trainer(model, args, TOKEN_ROWS, teacher_model=tiny_seq2seq("marian", 2), kind=Watching)
    for callback in callbacks:
        made.add_callback(callback)
    return made


def shares(folder: Path) -> list[list[tuple[list[int], int]]]:
    noted = Batches()
    by_tokens(folder, noted).train()
    return noted.epochs


def resumed(folder: Path) -> dict[str, Any]:
    """Weights of a run and of the same run stopped in the middle of its second epoch and resumed."""
    settings: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 1e-2, "gradient_accumulation_steps": 2}
    whole = by_tokens(folder / "whole", **settings)
    whole.train()
    middle = whole.state.max_steps // 2 + 1  # one step into the second epoch
    settings |= {"save_strategy": "steps", "save_steps": middle}
    stopped = by_tokens(folder / "stopped", StopAfter(middle + 1), **settings)
    with contextlib.suppress(StoppedError):
        stopped.train()
    stopped.accelerator.wait_for_everyone()
    again = by_tokens(folder / "stopped", **settings)
    torch.manual_seed(999 + again.args.process_index)
    again.train(resume_from_checkpoint=str(folder / "stopped" / f"checkpoint-{middle}"))
    assert again.state.global_step == whole.state.global_step > middle + 1
    return {"whole": weights(whole.model), "resumed": weights(again.model)}


def run(folder: Path) -> dict[str, Any]:
    return {
        "gradients": {name: gradients(folder / "steps", name) for name in STEPS},
        "trained": trained(folder / "trained"),
        "evaluated": {how: evaluated(folder / "evaluated", how) for how in (False, True)},
        "states": {family: states(folder / "states", family) for family in ("marian", "bart", "t5", "fsmt")},
        "shares": shares(folder / "shares"),
        "resumed": resumed(folder / "resumed"),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    result = run(output)
    from accelerate import PartialState

    torch.save(result, output / f"rank{PartialState().process_index}.pt")
    PartialState().destroy_process_group()
