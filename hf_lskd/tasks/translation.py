"""Translation as one kind of work: parallel text, tokenizer, encoder-decoders, and how a cell is trained and judged."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from transformers import PrinterCallback

from hf_lskd.analysis.semantics import SimilarSets, sets_from_embeddings
from hf_lskd.arguments import Seq2SeqDistillationArguments
from hf_lskd.data.pairs import Pairs
from hf_lskd.data.parallel import load_parallel
from hf_lskd.data.token_batches import Seq2SeqCollator, TokenBatchSampler
from hf_lskd.data.tokenizer import load_tokenizer, train_bpe
from hf_lskd.data.translation import TranslationDataset
from hf_lskd.errors import InputError
from hf_lskd.generation import translate_corpus
from hf_lskd.metrics import score_translations
from hf_lskd.models.sequence import (
    check_tokenizer,
    load_seq2seq,
    load_trained_seq2seq,
    output_weights,
    rows_of,
    token_rows,
)
from hf_lskd.recipe import DecodingSpec, EtaSpec, ModelSpec, Recipe, StudentSpec
from hf_lskd.record import MODEL, STATISTICS, Cell
from hf_lskd.seq2seq import check_token_maps
from hf_lskd.tasks.task import READING, SPLITS, Features, SplitReading, Task, derived_seed, reading
from hf_lskd.trainer import Seq2SeqDistillationTrainer

TRANSLATIONS = "translations.jsonl"  # of the held-out pairs, in a cell's folder
TRAINING_TRANSLATIONS = "translations.train.jsonl"  # of the training text, in a teacher's cell
GRADIENT_ITEMS = 20_000  # target tokens that g(T) is averaged over: enough for three digits


class Translation(Task):
    """Parallel text of a recipe, its tokenizer, and everything that a cell of its study does with them."""

    metric = "bleu"
    curve_metric = "nll"
    curve_sign = -1

    def __init__(self, recipe: Recipe, cache_dir: Path | None = None) -> None:
        super().__init__(recipe)
        self.source = load_parallel(self.data, cache_dir=cache_dir)
        self.decoding = recipe.decoding or DecodingSpec()
        name = self.data.get("tokenizer")
        train = self.source.train
        self.tokenizer = (
            load_tokenizer(name) if name else train_bpe([*train.sources, *train.targets], self.data["vocab_size"])
        )
        check_tokenizer(self.tokenizer)
        vocabulary = self.tokenizer.get_vocab()
        token_of = {index: token for token, index in vocabulary.items()}
        self.class_names = [token_of.get(i, f"<{i}>") for i in range(token_rows(self.tokenizer))]
        tokens = hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()
        self.fingerprint = hashlib.sha256((self.source.fingerprint + tokens).encode()).hexdigest()
        self._check_batches()

    def _check_batches(self) -> None:
        most = self.recipe.training.get("max_tokens")
        if most is not None:
            TokenBatchSampler(self.rows["train"].lengths, most)

    @cached_property
    def rows(self) -> dict[str, TranslationDataset]:
        """Both splits as token ids: what is trained on, and what models are judged on; and `curve`, watched in training."""
        longest = self.data["max_length"]
        options = {"tokenizer": self.tokenizer, "max_length": longest}
        return {
            "train": TranslationDataset(self.source.train, drop_longer=True, **options),
            "validation": TranslationDataset(self.source.held_out, **options),
            "curve": TranslationDataset(self.source.validation, **options),
        }

    # ---- What a cell is made of

    def check(self, spec: ModelSpec) -> None:
        """Raise InputError for a model that cannot be had, or whose token rows are fewer than the tokenizer's."""
        if isinstance(spec.pretrained, str) and not Path(spec.pretrained).exists():
            raise InputError(f"pretrained: {spec.pretrained} does not exist", "true, false, or the path of weights")
        if spec.pretrained is False:
            self._fits(self._load(spec), str(spec.model))

    def check_teacher(self, path: Path) -> None:
        """Raise InputError for a finished teacher whose token map is not the students'."""
        self._fits(load_trained_seq2seq(str(path)), str(path))
        if (path / "tokenizer_config.json").is_file():
            check_token_maps(load_tokenizer(str(path)).get_vocab(), self.tokenizer.get_vocab())

    def _fits(self, model: Any, name: str) -> None:
        rows, needed = rows_of(model), token_rows(self.tokenizer)
        if rows is not None and rows < needed:
            raise InputError(
                f"model {name!r} of {rows} token rows for a tokenizer of {needed}",
                "a model of at least as many",
                "Give the model's own tokenizer as data.tokenizer.",
            )

    def _load(self, spec: ModelSpec) -> Any:
        return load_seq2seq(
            str(spec.model), tokenizer=self.tokenizer, pretrained=spec.pretrained, model_args=spec.model_args
        )

    def build(self, cell: Cell) -> Any:
        """The cell's model before training; its initial weights depend on the cell's seed and role alone, not on α or T."""
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(cell.seed, "model", cell.role, cell.student))
            return self._load(self.spec(cell))

    def arguments(
        self, cell: Cell, folder: Path, loss_scale: float = 1.0, **others: Any
    ) -> Seq2SeqDistillationArguments:
        """The cell's training arguments: the recipe's, the model's own, what the grid says, and `others` on top."""
        return Seq2SeqDistillationArguments(
            **{"per_device_eval_batch_size": 64, **self.cell_arguments(cell, folder, loss_scale, others)}
        )

    def trainer(
        self, cell: Cell, folder: Path, *, teacher: Path | None = None, loss_scale: float = 1.0, callbacks: Any = ()
    ) -> Seq2SeqDistillationTrainer:
        """A trainer ready to train the cell, distilling from the model in `teacher` when it is a student."""
        args = self.arguments(cell, folder, loss_scale)
        trainer = self._trainer(
            self.build(cell),
            args,
            train_dataset=self._training_rows(self.spec(cell), teacher, args),
            eval_dataset=self.rows["curve"].by_length(),
            callbacks=list(callbacks),
            teacher_model=str(teacher) if teacher is not None and (cell.kd_weight or 0) > 0 else None,
        )
        trainer.remove_callback(PrinterCallback)  # the study has its own progress line, the record its own curve
        return trainer

    def reader(self, cell: Cell, folder: Path) -> Seq2SeqDistillationTrainer:
        """A trainer around the finished model in `folder`, for reading only."""
        return self._trainer(load_trained_seq2seq(str(folder)), self.arguments(cell, folder, **READING))

    def _trainer(self, model: Any, args: Any, **kwargs: Any) -> Seq2SeqDistillationTrainer:
        collator = Seq2SeqCollator(self.tokenizer.pad_token_id)
        return Seq2SeqDistillationTrainer(
            model, args, data_collator=collator, processing_class=self.tokenizer, **kwargs
        )

    def _training_rows(self, spec: ModelSpec, teacher: Path | None, args: Any) -> Any:
        """What the model learns to say: the data's own translations, its teacher's, or both."""
        targets = spec.targets if isinstance(spec, StudentSpec) else "gold"
        if targets == "gold" or teacher is None:
            return self.rows["train"]
        said = self._said_by(teacher, args)
        options = {"max_length": self.data["max_length"], "drop_longer": True}
        taught = TranslationDataset(Pairs(*zip(*said)), self.tokenizer, **options)
        return taught if targets == "teacher" else Joined([self.rows["train"], taught])

    def _said_by(self, teacher: Path, args: Any) -> list[tuple[str, str]]:
        """The training text and the teacher's translations of it, made once and kept in the teacher's cell."""
        path = teacher.parent / TRAINING_TRANSLATIONS
        with args.main_process_first(desc="the teacher's translations"):
            if not path.is_file():
                self.translate(load_trained_seq2seq(str(teacher)), self.source.train.sources, args.device, path)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [(row["source"], row["target"]) for row in rows if row["target"].strip()]

    def translate(self, model: Any, sources: Sequence[str], device: Any, output: Path | None = None) -> Any:
        """Translations of `sources`, by the recipe's decoding."""
        how = self.decoding
        return translate_corpus(
            model.to(device),
            self.tokenizer,
            sources,
            output,
            beams=how.beams,
            length_penalty=how.length_penalty,
            max_length=how.max_length,
        )

    def save(self, model: Any, spec: ModelSpec, folder: Path) -> None:
        """The model with its tokenizer."""
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    # ---- What is measured of a trained cell

    def read_split(self, trainer: Any, spec: ModelSpec, split: str, temperatures: Iterable[float] = ()) -> SplitReading:
        """One pass over a split under teacher forcing: embeddings' statistics by target token, what was said of each token,
        and g of an even sample of the logits."""
        rows = self.rows[split]
        stride = max(1, int(rows.lengths[:, 1].sum()) // GRADIENT_ITEMS)
        return reading(trainer, rows.by_length(), said_of_tokens, temperatures, stride)

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """nll in nats and token_accuracy in percent, per target token under teacher forcing."""
        correct = predictions["prediction"] == predictions["label"]
        return {
            "nll": float(predictions["nll"].double().mean()),
            "token_accuracy": 100 * float(correct.double().mean()),
        }

    def output(self, trainer: Any, folder: Path) -> dict[str, Any]:
        """Translations of the held-out pairs, into `folder`, and their scores with signatures."""
        pairs = self.source.held_out
        if not trainer.accelerator.is_main_process:
            return {"metrics": {}}
        made = self.translate(trainer.accelerator.unwrap_model(trainer.model), pairs.sources, trainer.args.device)
        texts = [one.text for one in made]
        lines = [
            {"source": source, "target": target, "translation": one.text, "score": one.score}
            for source, target, one in zip(pairs.sources, pairs.targets, made)
        ]
        write_lines(folder / TRANSLATIONS, lines)
        language = self.source.target_lang
        score = score_translations(texts, pairs.targets, target_lang=language)
        copy = score_translations(pairs.sources, pairs.targets, target_lang=language)
        names = ("bleu", "chrf", "bleu_tok_lc", "length_ratio", "repetition_rate")
        return {
            "metrics": {name: getattr(score, name) for name in names},
            "translation": {
                **{f"{name}_signature": getattr(score, f"{name}_signature") for name in names[:3]},
                "beams": self.decoding.beams,
                "copy": {"bleu": copy.bleu, "chrf": copy.chrf},
                "split": "validation" if self.source.test is None else "test",
                "pairs": len(pairs),
                "source_lang": self.source.source_lang,
                "target_lang": language,
                "data": dict(self.source.facts),
            },
        }

    # ---- η and the projection

    def sets_of_teacher(self, eta: EtaSpec, folder: Path) -> dict[int, SimilarSets] | None:
        """S1 and S2 of the target tokens that occur `eta.min_count` times in each split: the nearest and farthest rows of the
        output embedding of the teacher in `folder`."""
        tensors = load_file(folder / STATISTICS)
        least = torch.stack([tensors[f"{split}.count"] for split in SPLITS]).min(0).values
        special = set(self.tokenizer.all_special_ids)
        often = [i for i in torch.nonzero(least >= eta.min_count).flatten().tolist() if i not in special]
        weight, _ = output_weights(load_trained_seq2seq(str(folder / MODEL)))
        sizes = {"similar": eta.min_similar, "dissimilar": eta.dissimilar}
        return sets_from_embeddings(weight, often, targets=self.eta_targets(eta), **sizes)

    def features(self, cell: Cell, folder: Path, classes: Sequence[int], split: str, most: int) -> Features:
        """Decoder states of the first `most` occurrences of each token, from the model saved in `folder`."""
        trainer = self.reader(cell, folder)
        left = dict.fromkeys(classes, most)
        states, labels = [], []
        rows = self.rows[split]
        wanted = set(classes)
        holding = [i for i in range(len(rows)) if wanted & set(rows.rows[i][1])][: 4 * most * len(classes)]
        for batch in trainer.penultimate(Subset(rows, holding)):
            for c in classes:
                at = torch.nonzero(batch.labels == c).flatten()[: left[c]]
                left[c] -= len(at)
                states.append(batch.features[at].cpu())
                labels.append(batch.labels[at].cpu())
        return Features(torch.cat(states), torch.cat(labels), *output_weights(trainer.model))


class Joined(ConcatDataset):
    """Two sets of rows, one after the other, with the lengths of both."""

    @property
    def lengths(self) -> list[Any]:
        return [pair for part in self.datasets for pair in part.lengths]  # type: ignore[attr-defined]


def said_of_tokens(logits: Tensor, labels: Tensor, example_id: Tensor | None) -> dict[str, Tensor]:
    """What one batch of logits `[N, V]` says of each target token, on the CPU."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    confidence, prediction = log_probs.max(-1)
    rows = {
        "label": labels,
        "prediction": prediction,
        "confidence": confidence.exp(),
        "nll": -log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1),
        "example_id": example_id if example_id is not None else torch.arange(len(labels)),
    }
    return {key: value.cpu() for key, value in rows.items()}


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, path)
