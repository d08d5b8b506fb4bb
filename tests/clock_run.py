"""One of two processes that save by the clock: rank 0's goes 10 seconds a step, rank 1's stands still, and rank 1 is slow to write.

python -m tests.clock_run FOLDER      under RANK, WORLD_SIZE, …; each writes into FOLDER/rank<k>.txt which states of chance are
there when a checkpoint is done for it
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_lskd.clock import SaveByClock
from tests.resume_run import make_trainer


class Noting(TrainerCallback):
    """Notes which states of chance a checkpoint holds at the moment that it is done for this process."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = sorted(path.name for path in Path(args.output_dir, f"checkpoint-{state.global_step}").glob("rng*"))
        with Path(args.output_dir, f"rank{args.process_index}.txt").open("a") as notes:
            print(state.global_step, *found, file=notes)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    trainer = make_trainer(
        folder, ema=None, teacher=False, accumulation=1, save_strategy="no", eval_strategy="no", save_minutes=20 / 60,
        max_steps=5, callbacks=[Noting()],
    )  # fmt: skip
    first = trainer.args.process_index == 0
    (callback,) = (found for found in trainer.callback_handler.callbacks if isinstance(found, SaveByClock))
    callback.clock = lambda: trainer.state.global_step * 10.0 * first
    if not first:
        torch_save = torch.save
        torch.save = lambda what, place, *rest: (time.sleep("rng" in str(place)), torch_save(what, place, *rest))
    trainer.train()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
