"""Translation: a training step beside fairseq's and the stock trainer's, and beam search beside stock `predict_with_generate`.

The step's sentences are random tokens of lengths drawn as those of a spoken corpus lie (log-normal around 20 tokens, the target's
length near the source's); no corpus is needed. fairseq runs in a process of its own, in the environment that
HF_LSKD_FAIRSEQ_PYTHON names (`make test-slow` builds one), on our batches.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments

from bench.measure import Result, Slice, absent, alternate, compared
from bench.step import Clock
from hf_lskd import Seq2SeqDistillationArguments, Seq2SeqDistillationTrainer
from hf_lskd.data.cldr import load_cldr
from hf_lskd.data.token_batches import Seq2SeqCollator, TokenBatchSampler
from hf_lskd.data.tokenizer import train_bpe
from hf_lskd.data.translation import TranslationDataset
from hf_lskd.models.sequence import load_seq2seq

MAX_TOKENS, STEPS, VOCABULARY, LONGEST = 512, 3, 8000, 100
CACHED_SENTENCES, KEPT = 120, 64
LEARNING = 1000  # steps of the translator that beam search is measured on
PYTHON = os.environ.get("HF_LSKD_FAIRSEQ_PYTHON", "")
SIDES = ("input_ids", "labels")
NAME = "NMT training step, transformer_iwslt_de_en"
MEANING = "peer / ours, time a target token"


class Sentences(torch.utils.data.Dataset):
    def __init__(self, count: int, eos: int, first: int) -> None:
        draw = np.random.default_rng(0)
        source = draw.lognormal(np.log(20), 0.6, count)
        sides = np.stack([source, source * draw.lognormal(0, 0.15, count)], 1)
        self.lengths = sides.round().astype(int).clip(2, LONGEST)
        self.rows = [
            {
                side: [*draw.integers(first, VOCABULARY - 10, length - 1).tolist(), eos]
                for side, length in zip(SIDES, pair)
            }
            for pair in self.lengths
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def tokenizer(words: int = VOCABULARY) -> Any:
    """Trained on made-up words, enough of them for the vocabulary."""
    draw = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return train_bpe(["".join(letters[draw.integers(0, 26, 9)]) for _ in range(2 * words)], words)


def train_slice(
    kind: type, collator: Any, data: Any, tok: Any, folder: str, arguments: Any, teacher: Any = None
) -> Slice:
    torch.manual_seed(0)
    model = load_seq2seq("transformer_iwslt_de_en", tokenizer=tok, model_args={"dropout": 0.0})
    seen: list[int] = []  # target tokens of each batch of this training; the loader is one ahead of the steps

    class Counted(Clock):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            seen.clear()  # a teacher's cache reads batches of its own before

    clock = Counted()

    def counting(rows: Any) -> Any:
        batch = collator(rows)
        seen.append(int((batch["labels"] != -100).sum()))
        return batch

    extra = {} if teacher is None else {"teacher_model": teacher}
    trainer = kind(
        model, arguments, data_collator=counting, train_dataset=data, processing_class=tok, callbacks=[clock], **extra
    )
    trainer.remove_callback(PrinterCallback)

    def slice_() -> float:
        trainer.train()
        return clock.seconds * (STEPS - 1) / sum(seen[1:STEPS])

    return slice_


COMMON: dict[str, Any] = {
    "max_steps": STEPS, "learning_rate": 5e-4, "label_smoothing_factor": 0.1, "max_grad_norm": 0.0, "report_to": "none",
    "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "dataloader_pin_memory": False, "seed": 1,
}  # fmt: skip


@contextmanager
def fairseq(folder: Path, model: Any, tok: Any, batches: list[Any]) -> Iterator[Slice]:
    """A slice of fairseq's own training on these batches, by a worker in its own environment."""
    from tests.test_fairseq_oracle import leave_for_fairseq

    leave_for_fairseq(folder, model, tok, batches)
    worker = subprocess.Popen(
        [PYTHON, "-W", "ignore", str(Path(__file__).with_name("fairseq_worker.py")), str(folder), str(STEPS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert worker.stdin is not None
    assert worker.stdout is not None

    def slice_() -> float:
        worker.stdin.write("go\n")  # type: ignore[union-attr]
        worker.stdin.flush()  # type: ignore[union-attr]
        for line in worker.stdout:  # type: ignore[union-attr]
            if line.startswith("seconds a token "):
                return float(line.split()[-1])
        raise RuntimeError("fairseq's worker ended")

    try:
        yield slice_
    finally:
        worker.stdin.close()
        worker.wait(timeout=60)


def step_rows(rounds: int) -> list[Result]:
    with tempfile.TemporaryDirectory() as temporary:
        tok = tokenizer()
        data = Sentences(3000, tok.eos_token_id, 10)
        own = Seq2SeqDistillationArguments(temporary, max_tokens=MAX_TOKENS, **COMMON)
        sampler = TokenBatchSampler(data.lengths, MAX_TOKENS, seed=1)
        per_batch = round(len(data) / len(sampler))
        stock = Seq2SeqTrainingArguments(temporary, per_device_train_batch_size=per_batch, **COMMON)
        ours = train_slice(Seq2SeqDistillationTrainer, Seq2SeqCollator(tok.pad_token_id), data, tok, temporary, own)
        model = load_seq2seq("transformer_iwslt_de_en", tokenizer=tok, model_args={"dropout": 0.0})
        padding = DataCollatorForSeq2Seq(tok, model=model)
        theirs = train_slice(Seq2SeqTrainer, padding, data, tok, temporary, stock)
        slices = {"ours": ours, "stock": theirs}
        if not PYTHON:
            seconds = alternate(slices, rounds)
            last = absent(NAME, MEANING, "fairseq", "no environment with fairseq: set HF_LSKD_FAIRSEQ_PYTHON")
        else:
            collate = Seq2SeqCollator(tok.pad_token_id)
            batches = [collate([data[i] for i in rows]) for rows in list(sampler)[:STEPS]]  # those of our own slice
            with fairseq(Path(temporary), model, tok, batches) as other:
                seconds = alternate({**slices, "fairseq": other}, rounds)
            last = compared(NAME, MEANING, "fairseq", 1.15, seconds["fairseq"], seconds["ours"], at_most=False)
    note = f"{per_batch} sentences a batch in random order, {MAX_TOKENS} padded tokens in ours"
    return [
        last,
        compared(
            NAME, MEANING, "stock Seq2SeqTrainer", 1.5, seconds["stock"], seconds["ours"], at_most=False, note=note
        ),
    ]


def cache_rows(rounds: int) -> list[Result]:
    """With a teacher's stored answers beside none at all: whole, and the 64 most probable tokens of each place.

    Few sentences, since all logits of a token are 32 kB here. The cache is filled in the warm-up round, before the clock runs.
    """
    meaning, peer = "cached teacher / no teacher, time a target token", "the same without a teacher"
    with tempfile.TemporaryDirectory() as temporary:
        tok = tokenizer()
        data = Sentences(CACHED_SENTENCES, tok.eos_token_id, 10)
        collator = Seq2SeqCollator(tok.pad_token_id)

        def ours(teacher: Any = None, **cache: Any) -> Slice:
            arguments = Seq2SeqDistillationArguments(temporary, max_tokens=MAX_TOKENS, **cache, **COMMON)
            return train_slice(Seq2SeqDistillationTrainer, collator, data, tok, temporary, arguments, teacher)

        teacher = load_seq2seq("transformer_iwslt_de_en", tokenizer=tok, model_args={"dropout": 0.0})
        folder = f"{temporary}/cache"
        slices = {
            "none": ours(),
            "whole": ours(teacher, teacher_cache=folder),
            "top": ours(teacher, teacher_cache=folder, teacher_cache_top_k=KEPT),
        }
        seconds = alternate(slices, rounds)
    return [
        compared(f"NMT step with a cached teacher, {kept}", meaning, peer, 1.1, seconds[name], seconds["none"], at_most=True,
                 note=f"{CACHED_SENTENCES} sentences, {MAX_TOKENS} padded tokens a step")
        for name, kept in (("whole", f"all {VOCABULARY:,} logits kept"), ("top", f"{KEPT} logits kept"))
    ]  # fmt: skip


def small_translator() -> tuple[Any, Any, Any]:
    """A small model that has learnt, in seconds, when CLDR's phrases end, its tokenizer, and 64 test sentences."""
    pairs = load_cldr({"source_lang": "en", "target_lang": "de", "pairs": 4000})
    tok = train_bpe([*pairs.train.sources, *pairs.train.targets], 600)
    shape = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "dropout": 0.0}  # fmt: skip
    torch.manual_seed(0)
    model = load_seq2seq("transformer_iwslt_de_en", tokenizer=tok, model_args=shape)
    rows = TranslationDataset(pairs.train, tok, max_length=100, drop_longer=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqDistillationArguments(
            folder,
            max_tokens=400,
            **{**COMMON, "max_steps": LEARNING, "learning_rate": 4e-3, "warmup_steps": LEARNING // 7},
        )
        trainer = Seq2SeqDistillationTrainer(
            model, arguments, data_collator=Seq2SeqCollator(tok.pad_token_id), train_dataset=rows, processing_class=tok
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model, tok, pairs


def beam_rows(rounds: int) -> list[Result]:
    from hf_lskd.generation import translate_corpus

    model, tok, pairs = small_translator()
    sources = list(pairs.train.sources)[::40][:96]
    rows = [{"input_ids": tok(text)["input_ids"], "labels": [tok.eos_token_id]} for text in sources]
    longest = 2 * max(len(row["input_ids"]) for row in rows) + 50
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder, predict_with_generate=True, generation_num_beams=5, generation_max_length=longest, report_to="none",
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Seq2SeqTrainer(
            model, arguments, data_collator=DataCollatorForSeq2Seq(tok, model=model), processing_class=tok
        )

        def clocked(run: Callable[[], Any]) -> Slice:
            def slice_() -> float:
                started = time.perf_counter()
                run()
                return time.perf_counter() - started

            return slice_

        seconds = alternate({
            "ours": clocked(lambda: translate_corpus(model, tok, sources, beams=5)),
            "stock": clocked(lambda: trainer.predict(rows)),  # type: ignore[arg-type]
        }, rounds)  # fmt: skip
    row, meaning = "translation by beam search, 5 beams", "peer / ours, time of 96 sentences"
    peer = "stock predict_with_generate, largest length as ours"
    return [compared(row, meaning, peer, 2.0, seconds["stock"], seconds["ours"], at_most=False)]
