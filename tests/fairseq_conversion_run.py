"""fairseq's own side of `test_fairseq_conversion.py`: models trained by it, their logits and translations, and its binary text.

    python fairseq_conversion_run.py FOLDER

Runs in an environment of its own, without this project. Reads from FOLDER `settings.json` and `{train,valid}.{en,de}`; learns codes
by subword-nmt and prepares `joined` and `apart` (one dictionary or two) and `cached` (as `apart`, in the older format), whose
contents are in `read.json`. For each variant it leaves `NAME/checkpoint_last.pt`, which fairseq trained, and `NAME/oracle.pt`: token
ids, logits under teacher forcing and what its beam search says.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

import torch
from fairseq import checkpoint_utils, options
from fairseq.data import data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import preprocess, train
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe

LANGUAGES = ("en", "de")
FOLDERS = ("joined", "apart", "cached")


def segment(folder: Path, merges: int) -> None:
    """Joint codes of the training text, and every file segmented by them."""
    lines = [line for language in LANGUAGES for line in (folder / f"train.{language}").read_text().splitlines(True)]
    with open(folder / "codes", "w") as codes:
        learn_bpe(lines, codes, merges)
    with open(folder / "codes") as codes:
        bpe = BPE(codes)
    for name in ("train", "valid"):
        for language in LANGUAGES:
            text = (folder / f"{name}.{language}").read_text().splitlines()
            (folder / f"{name}.bpe.{language}").write_text("".join(f"{bpe.process_line(line)}\n" for line in text))


def prepare(folder: Path, name: str, extra: list[str]) -> None:
    words = ["--source-lang", "en", "--target-lang", "de", "--trainpref", f"{folder}/train.bpe", "--validpref",
             f"{folder}/valid.bpe", "--destdir", f"{folder}/{name}", *extra]  # fmt: skip
    preprocess.main(options.get_preprocessing_parser().parse_args(words))


def train_variant(folder: Path, name: str, settings: dict) -> None:
    words = [
        str(folder / settings["data"]), "--task", "translation", "--source-lang", "en", "--target-lang", "de",
        "--cpu", "--no-progress-bar", "--log-format", "none", "--save-dir", str(folder / name), "--seed", "1",
        "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--optimizer", "adam",
        "--lr-scheduler", "fixed", "--lr", str(settings["rate"]), "--max-tokens", "1000", "--clip-norm", "1",
        "--disable-validation", "--no-epoch-checkpoints", "--num-workers", "0", "--dropout", "0",
        "--max-update", str(settings["updates"]), *settings["shape"], *settings["args"],
    ]  # fmt: skip
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    train.main(convert_namespace_to_omegaconf(args))


@torch.no_grad()
def said(folder: Path, name: str, settings: dict) -> dict:
    """What the saved model makes of the validation text."""
    path = folder / name / "checkpoint_last.pt"
    overrides = {"data": str(folder / settings["data"])}
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides=overrides)
    model.eval()
    task.load_dataset("valid")
    pairs = task.dataset("valid")
    asked = Namespace(beam=5, max_len_a=0, max_len_b=settings["max_length"] - 1, lenpen=1.0)
    generator = task.build_generator([model], asked)
    found: dict[str, list] = {"sources": [], "targets": [], "logits": [], "hypotheses": [], "scores": []}
    for index in range(len(pairs)):
        batch = pairs.collater([pairs[index]])
        logits, _ = model(**batch["net_input"])
        found["sources"].append(pairs[index]["source"])
        found["targets"].append(pairs[index]["target"])
        found["logits"].append(logits[0].clone())
    for start in range(0, len(pairs), 25):
        batch = pairs.collater([pairs[i] for i in range(start, min(start + 25, len(pairs)))])
        made = generator.generate([model], batch)
        best = {int(i): hypotheses[0] for i, hypotheses in zip(batch["id"], made)}
        for index in sorted(best):
            found["hypotheses"].append(best[index]["tokens"])
            found["scores"].append(float(best[index]["score"]))
    found["texts"] = [task.target_dictionary.string(tokens, "@@ ") for tokens in found["hypotheses"]]
    return found


def read_back(folder: Path, name: str) -> dict:
    """The binary text of one folder, as fairseq reads it."""
    found = {}
    for split in ("train", "valid"):
        for language in LANGUAGES:
            rows = data_utils.load_indexed_dataset(str(folder / name / f"{split}.en-de.{language}"), None)
            if rows.supports_prefetch:
                rows.prefetch(range(len(rows)))
            found[f"{split}.{language}"] = [rows[i].tolist() for i in range(len(rows))]
    return found


def main(folder: Path) -> None:
    torch.serialization.add_safe_globals([Namespace])  # which fairseq's checkpoints hold and torch 2.6 refuses
    settings = json.loads((folder / "settings.json").read_text())
    segment(folder, settings["merges"])
    prepare(folder, "joined", ["--joined-dictionary"])
    prepare(folder, "apart", [])
    prepare(folder, "cached", ["--dataset-impl", "cached"])
    (folder / "read.json").write_text(json.dumps({name: read_back(folder, name) for name in FOLDERS}))
    for name, variant in settings["variants"].items():
        together = {**settings, **variant}
        train_variant(folder, name, together)
        torch.save(said(folder, name, together), folder / name / "oracle.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
