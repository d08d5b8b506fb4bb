"""fairseq's own training of a model on batches that another process left, for `test_fairseq_oracle.py`.

    python fairseq_run.py FOLDER

Runs in an environment of its own, without this project: reads `settings.json`, `weights.pt` and `batches.pt` from FOLDER, trains by
`fairseq.trainer.Trainer` with fairseq's `label_smoothed_cross_entropy`, and writes each step's loss to `losses.json`.
"""

import json
import sys
from pathlib import Path

import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer


def dictionary(settings: dict) -> Dictionary:
    """A dictionary of so many symbols with the special ones where they are told to be."""
    found = Dictionary()
    found.symbols = [f"token{i}" for i in range(settings["rows"])]
    found.count = [1] * settings["rows"]
    found.indices = {symbol: i for i, symbol in enumerate(found.symbols)}
    found.pad_index, found.eos_index, found.unk_index = settings["pad"], settings["eos"], settings["unk"]
    return found


def trainer_of(settings: dict) -> Trainer:
    words = [
        "data", "--task", "translation", "--source-lang", "en", "--target-lang", "de",
        "--arch", "transformer_iwslt_de_en", "--share-all-embeddings", "--dropout", "0", "--cpu", "--no-progress-bar",
        "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", str(settings["label_smoothing"]),
        "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--adam-eps", "1e-8", "--clip-norm", "0",
        "--lr-scheduler", "fixed", "--lr", str(settings["learning_rate"]), "--max-tokens", "4096",
    ]  # fmt: skip
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    symbols = dictionary(settings)
    task = TranslationTask(config.task, symbols, symbols)
    return Trainer(config, task, task.build_model(config.model), task.build_criterion(config.criterion))


def translated(weights: dict, own: dict) -> dict:
    """Marian's weights under fairseq's names, which differ outside the layers only."""
    found = dict(own)
    for name in own:
        layer = "layers." in name
        source = f"model.{name}" if layer else "model.shared.weight"
        if layer or name.endswith(("embed_tokens.weight", "output_projection.weight")):
            found[name] = weights[source]
    return found


def sample(batch: dict, settings: dict) -> dict:
    """One batch as fairseq's collator would have made it."""
    pad, eos = settings["pad"], settings["eos"]
    target = batch["labels"].masked_fill(batch["labels"] == -100, pad)
    before = torch.cat([torch.full_like(target[:, :1], eos), target[:, :-1]], 1)
    source = batch["input_ids"]
    inputs = {"src_tokens": source, "src_lengths": (source != pad).sum(1), "prev_output_tokens": before}
    return {
        "id": torch.arange(len(source)),
        "nsentences": len(source),
        "ntokens": int((target != pad).sum()),
        "net_input": inputs,
        "target": target,
    }


def main(folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    torch.manual_seed(0)
    trainer = trainer_of(settings)
    weights = torch.load(folder / "weights.pt", weights_only=True)
    model = trainer.model
    model.load_state_dict(translated(weights, model.state_dict()), strict=True)
    assert torch.equal(model.decoder.output_projection.weight, weights["model.shared.weight"])
    trainer.begin_epoch(1)
    losses = []
    for batch in torch.load(folder / "batches.pt", weights_only=True):
        model.train()
        with metrics.aggregate(new_root=True) as meters:  # what train_step returns is rounded
            trainer.train_step([sample(batch, settings)])
        losses.append(float(meters["loss"].avg))
    (folder / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
