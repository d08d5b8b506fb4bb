"""Commands of hf-lskd on however many processes were launched, watched: gradients, weights, logs, and who wrote which cell.

python -m tests.launch_run COMMANDS.json FOLDER     under `accelerate launch`, or alone; writes FOLDER/rank<k>.pt
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_lskd import DistillationTrainer, Seq2SeqDistillationTrainer
from hf_lskd.cli import main
from tests.conftest import weights


class Watch(TrainerCallback):
    """The gradient of each of the first steps, as the optimizer gets it."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        named = ((name.removeprefix("module."), p) for name, p in model.named_parameters())
        self.gradients.append({name: p.grad.detach().clone() for name, p in named if p.grad is not None})


def watched(kind: type, found: list[dict[str, Any]]) -> None:
    """Note what each training of this kind of trainer comes to."""
    original = kind.train  # type: ignore[attr-defined]

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = Watch()
        self.add_callback(watch)
        result = original(self, *args, **kwargs)
        logs = [entry for entry in self.state.log_history if "loss" in entry or "eval_loss" in entry]
        found.append(
            {
                "world": self.accelerator.num_processes,
                "weights": weights(self.model),
                "gradients": watch.gradients,
                "log": logs,
            }
        )
        return result

    kind.train = train  # type: ignore[attr-defined]


def run(commands: list[list[str]]) -> dict[str, Any]:
    """Exit codes, what each training came to, and the cells that this process moved into place."""
    trained: list[dict[str, Any]] = []
    moved: list[str] = []
    for kind in (DistillationTrainer, Seq2SeqDistillationTrainer):
        watched(kind, trained)
    replace = os.replace

    def note(source: Any, target: Any, **kwargs: Any) -> None:
        moved.append(str(target))
        replace(source, target, **kwargs)

    os.replace = note  # type: ignore[assignment]
    codes = [main(command) for command in commands]
    return {"codes": codes, "trained": trained, "moved": moved}


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = run(json.loads(Path(sys.argv[1]).read_text()))
    from accelerate import PartialState

    torch.save(result, Path(sys.argv[2]) / f"rank{PartialState().process_index}.pt")
    PartialState().destroy_process_group()
