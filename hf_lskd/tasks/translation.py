"""Translation as one kind of work: parallel text, tokenizer, encoder-decoders, and how a cell is trained and judged."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from transformers import PrinterCallback

from hf_lskd.analysis.semantics import SimilarSets, sets_from_embeddings
from hf_lskd.arguments import Seq2SeqDistillationArguments
from hf_lskd.data.fairseq_dictionary import joined
from hf_lskd.data.pairs import Pairs
from hf_lskd.data.parallel import load_parallel
from hf_lskd.data.token_batches import Seq2SeqCollator, TokenBatchSampler
from hf_lskd.data.tokenizer import load_tokenizer, set_languages, train_bpe
from hf_lskd.data.translation import TranslationDataset
from hf_lskd.errors import InputError
from hf_lskd.generation import translate_corpus
from hf_lskd.metrics import bleu_metric, score_translations
from hf_lskd.models.sequence import (
    begin_in_language,
    check_tokenizer,
    load_seq2seq,
    load_trained_seq2seq,
    output_weights,
    rows_of,
    target_tokens,
    token_rows,
)
from hf_lskd.recipe import DecodingSpec, EtaSpec, ModelSpec, Recipe, StudentSpec, signature
from hf_lskd.record import MODEL, TRANSLATIONS, Cell
from hf_lskd.seq2seq import check_token_maps
from hf_lskd.tasks.target_tokens import check_frequent, enough, first_states, frequent_tokens, rows_with
from hf_lskd.tasks.task import READING, SPLITS, Features, Judged, Task, as_teacher_model, derived_seed, said
from hf_lskd.teacher import Teacher
from hf_lskd.trainer import Seq2SeqDistillationTrainer

TRAINING_TRANSLATIONS = (
    "translations.train-{key}.jsonl"  # of a training text by one way of decoding, in a teacher's cell
)
DEFAULTS = {
    "per_device_eval_batch_size": 64,
    "ddp_timeout": 24 * 60 * 60,  # seconds: the other processes wait while the first one translates a whole text
}
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
        set_languages(self.tokenizer, self.source.source_lang, self.source.target_lang)
        vocabulary = self.tokenizer.get_vocab()
        token_of = {index: token for token, index in vocabulary.items()}
        self.class_names = [token_of.get(i, f"<{i}>") for i in range(token_rows(self.tokenizer))]
        encoded = [
            (split, self.rows[split].rows) for split in SPLITS
        ]  # what the tokenizer makes of the text, whatever it is
        tokens = hashlib.sha256(repr((sorted(vocabulary.items()), encoded)).encode()).hexdigest()
        self.fingerprint = hashlib.sha256((self.source.fingerprint + tokens).encode()).hexdigest()
        self._check_batches()

    def _check_batches(self) -> None:
        bleu_metric(self.source.target_lang)  # whose tokenizer may not be installed
        longest = self.data["max_length"]
        for student in self.recipe.students:
            most = self.recipe.training_of(student).get("max_tokens")
            if student.targets != "gold" and most is not None and most < longest:
                raise InputError(
                    f"max_tokens = {most} for student {student.name!r}, whose teacher may say {longest} tokens",
                    "at least data.max_length",
                    "Raise max_tokens, or lower data.max_length, which leaves longer pairs out.",
                )
        for spec in (self.recipe.teacher, *self.recipe.students):
            most = self.recipe.training_of(spec).get("max_tokens")
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

    def _left_out(self) -> dict[str, int]:
        """How many training pairs are too long to be trained on, where some are."""
        count = len(self.source.train) - len(self.rows["train"])
        return {f"training pairs of over {self.data['max_length']} tokens, left out": count} if count else {}

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
            check_token_maps(target_tokens(load_tokenizer(str(path))), target_tokens(self.tokenizer))

    def _fits(self, model: Any, name: str) -> None:
        rows, needed = rows_of(model), token_rows(self.tokenizer)
        places = getattr(model.config, "max_position_embeddings", None)
        longest = max(int(self.rows[split].lengths.max()) for split in self.rows)
        if places is not None and longest > places:
            raise InputError(
                f"model {name!r} with {places} positions for pairs of {longest} tokens",
                "a model with as many positions",
                "Lower data.max_length, or raise max_position_embeddings.",
            )
        if rows is not None and rows < needed:
            raise InputError(
                f"model {name!r} of {rows} token rows for a tokenizer of {needed}",
                "a model of at least as many",
                "Give the model's own tokenizer as data.tokenizer.",
            )

    def _load(self, spec: ModelSpec) -> Any:
        model = load_seq2seq(
            str(spec.model), tokenizer=self.tokenizer, pretrained=spec.pretrained, model_args=spec.model_args
        )
        begin_in_language(model, self.tokenizer)
        return model

    def build(self, cell: Cell) -> Any:
        """The cell's model before training; its initial weights depend on the cell's seed and role alone, not on α or T."""
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(cell.seed, "model", cell.role, cell.student))
            return self._load(self.spec(cell))

    def arguments(
        self, cell: Cell, folder: Path, loss_scale: float = 1.0, **others: Any
    ) -> Seq2SeqDistillationArguments:
        """The cell's training arguments: the recipe's, the model's own, what the grid says, and `others` on top."""
        return Seq2SeqDistillationArguments(**{**DEFAULTS, **self.cell_arguments(cell, folder, loss_scale, others)})

    def batches_of(self, cell: Cell) -> dict[str, Any]:
        """A teacher's logits are cut to one student's token rows; and batches that are not by tokens are stock ones, whose
        loader draws from the cell's own generator."""
        found = super().batches_of(cell)
        own = {} if found["training"].get("max_tokens") else {"seed": cell.seed}
        return {**found, "student": cell.student, **own}

    def trainer(
        self,
        cell: Cell,
        folder: Path,
        *,
        teachers: Sequence[Path] = (),
        loss_scale: float = 1.0,
        callbacks: Any = (),
        prepared: Teacher | None = None,
    ) -> Seq2SeqDistillationTrainer:
        """A trainer ready to train the cell, distilling from the models in these folders when it is a student.

        `prepared` are those teachers where another trainer of the same student has read them already.
        """
        args = self.arguments(cell, folder, loss_scale, **self.cache_arguments(teachers))
        trainer = self._trainer(
            self.build(cell),
            args,
            train_dataset=self._training_rows(self.spec(cell), teachers, args),
            eval_dataset=self.rows["curve"].by_length(),
            callbacks=list(callbacks),
            teacher_model=(prepared or as_teacher_model(teachers)) if (cell.kd_weight or 0) > 0 else None,
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

    def _training_rows(self, spec: ModelSpec, teachers: Sequence[Path], args: Any) -> Any:
        """What the model learns to say: the data's own translations, its teacher's, or both."""
        targets = spec.targets if isinstance(spec, StudentSpec) else "gold"
        if targets == "gold" or not teachers:
            return self.rows["train"]
        if len(teachers) > 1:
            raise InputError(
                f"targets: {targets} of {len(teachers)} teachers", "one teacher, whose translations they are"
            )
        said = self._said_by(teachers[0], args)
        options = {"max_length": self.data["max_length"], "drop_longer": True}
        taught = TranslationDataset(Pairs(*zip(*said)), self.tokenizer, **options)
        return taught if targets == "teacher" else Joined([self.rows["train"], taught])

    def _said_by(self, teacher: Path, args: Any) -> list[tuple[str, str]]:
        """The training text and the teacher's translations of it, made once and kept in the teacher's cell."""
        sources = list(self.source.train.sources)
        key = signature({"sources": sources, "decoding": vars(self.decoding)})[:12]
        path = teacher.parent / TRAINING_TRANSLATIONS.format(key=key)
        with args.main_process_first(desc="the teacher's translations"):
            if not path.is_file():
                self.translate(load_trained_seq2seq(str(teacher)), sources, args.device, path)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        said = [(row["source"], row["target"]) for row in rows if row["target"].strip()]
        if not said:
            raise InputError(
                f"the teacher in {teacher} has no word for any of {len(rows)} training sentences",
                "a teacher that translates",
                "Look at its BLEU: it may need more steps.",
            )
        return said

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

    def judged(self, spec: ModelSpec, split: str) -> Judged:
        """A split under teacher forcing, an item a target token; g is of an even sample of them."""
        rows = self.rows[split]
        return Judged(rows.by_length(), said, max(1, int(rows.lengths[:, 1].sum()) // GRADIENT_ITEMS))

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
        score_of = partial(score_translations, target_lang=language, tokenised=self.source.tokenised)
        sources, targets = (
            [joined(text, self.source.pieces) for text in side] for side in (pairs.sources, pairs.targets)
        )
        score, copy = score_of(texts, targets), score_of(sources, targets)
        names = ("bleu", "chrf", "bleu_tok_lc", "length_ratio", "repetition_rate")
        return {
            "metrics": {
                **{name: getattr(score, name) for name in names},
                "cut_rate": 100 * sum(one.cut for one in made) / len(made),
            },
            "translation": {
                **{f"{name}_signature": getattr(score, f"{name}_signature") for name in names[:3]},
                "beams": self.decoding.beams,
                "copy": {"bleu": copy.bleu, "chrf": copy.chrf},
                "split": "validation" if self.source.test is None else "test",
                "pairs": len(pairs),
                "source_lang": self.source.source_lang,
                "target_lang": language,
                "data": {**self.source.facts, **self._left_out()},
            },
        }

    # ---- η and the projection

    def frequent(self, eta: EtaSpec) -> list[int]:
        """The target tokens that occur `eta.min_count` times in each split, special ones left out."""
        return frequent_tokens(self.rows, eta.min_count, len(self.class_names), self.tokenizer.all_special_ids)

    def check_eta(self, eta: EtaSpec) -> None:
        """Raise InputError for unknown and rare targets, and warn where too few tokens are frequent for η: it is then left out."""
        if eta.sets is None:  # else a file's, which is read before this
            check_frequent(eta, self.frequent(eta), self.class_index)

    def sets_of_teacher(self, eta: EtaSpec, folder: Path) -> dict[int, SimilarSets] | None:
        """S1 and S2 of the frequent target tokens: the nearest and farthest rows of the output embedding of the teacher in
        `folder`; None where there are too few of them."""
        often = self.frequent(eta)
        if not enough(eta, often):
            return None
        weight, _ = output_weights(load_trained_seq2seq(str(folder / MODEL)))
        sizes = {"similar": eta.min_similar, "dissimilar": eta.dissimilar}
        return sets_from_embeddings(weight, often, targets=self.eta_targets(eta), **sizes)

    def features(self, cell: Cell, folder: Path, classes: Sequence[int], split: str, most: int) -> Features:
        """Decoder states of the first `most` occurrences of each token, from the model saved in `folder`."""
        trainer, rows = self.reader(cell, folder), self.rows[split]
        batches = trainer.penultimate(Subset(rows, rows_with(rows, classes, most)))
        return Features(*first_states(batches, classes, most), *output_weights(trainer.model))


class Joined(ConcatDataset):
    """Two sets of rows, one after the other, with the lengths of both."""

    @property
    def lengths(self) -> list[Any]:
        return [pair for part in self.datasets for pair in part.lengths]  # type: ignore[attr-defined]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, path)
