"""fairseq's own trainer on batches that `bench.translation` left in a folder: `fairseq_worker.py FOLDER STEPS`.

Runs in fairseq's environment. For each line on standard input it trains STEPS steps (from the first batch again where there are no
more) and prints the seconds a target token of all but the first, as the clock of the other trainers has it.
"""

import itertools
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from fairseq_run import sample, trainer_of, translated

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(int(json.loads((folder / "settings.json").read_text())["threads"]))
settings = json.loads((folder / "settings.json").read_text())
trainer = trainer_of(settings)
trainer.model.load_state_dict(
    translated(torch.load(folder / "weights.pt", weights_only=True), trainer.model.state_dict()), strict=True
)
trainer.begin_epoch(1)
trainer.model.train()
batches = itertools.cycle([sample(batch, settings) for batch in torch.load(folder / "batches.pt", weights_only=True)])
for _ in sys.stdin:
    tokens, started = 0, 0.0
    for step in range(steps):
        batch = next(batches)
        trainer.train_step([batch])
        tokens += batch["ntokens"] if step else 0
        started = time.perf_counter() if step == 0 else started
    print("seconds a token", (time.perf_counter() - started) / tokens, flush=True)
