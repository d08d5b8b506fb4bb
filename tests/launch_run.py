"""Commands of hf-lskd on however many processes were launched, watched: gradients, weights, logs, and who wrote which cell.

python -m tests.launch_run COMMANDS.json FOLDER     under `accelerate launch`, or alone; writes FOLDER/rank<k>.pt
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
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
        self.gradients.append({name: whole(p.grad) for name, p in named if p.grad is not None})


def whole(value: Any) -> torch.Tensor:
    """A copy of a tensor, of all its parts where it has some."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def watched(kind: type, found: list[dict[str, Any]]) -> None:
    """Note what each training of this kind of trainer comes to."""
    original = kind.train  # type: ignore[attr-defined]

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = Watch()
        self.add_callback(watch)
        result = original(self, *args, **kwargs)
        logs = [entry for entry in self.state.log_history if "loss" in entry or "eval_loss" in entry]
        parts = sum(p.to_local().numel() for p in self.model.state_dict().values() if isinstance(p, DTensor))
        found.append(
            {
                "world": self.accelerator.num_processes,
                "weights": {key: whole(value) for key, value in weights(self.model).items()},
                "parts": parts,
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


def fsdp_on_a_processor() -> None:
    """Have accelerate cut models into parts on a processor too, which it leaves undone without a word (trap 27's sibling)."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    original = PartialState.__init__

    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = begin  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "HF_LSKD_TEST_FSDP" in os.environ:
        fsdp_on_a_processor()
    result = run(json.loads(Path(sys.argv[1]).read_text()))
    from accelerate import PartialState

    torch.save(result, Path(sys.argv[2]) / f"rank{PartialState().process_index}.pt")
    PartialState().destroy_process_group()
