"""One step of a tiny translator on all rows, and its logits of each row by itself."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.seq2seq_run import SIZES
from tests.tiny_seq2seq import (
    Gradients,
    Rows,
    arguments,
    gradient,
    tiny_seq2seq,
    trainer,
)

ROWS = Rows(SIZES, seed=1)


def said(model: Any, row: dict[str, Any]) -> Tensor:
    """Logits `[L, V]` of one row by itself: no padding anywhere, the labels shifted in plain Python."""
    started = [model.config.decoder_start_token_id, *row["labels"][:-1]]
    ids, behind = torch.tensor([row["input_ids"]]), torch.tensor([started])
    return model(input_ids=ids, decoder_input_ids=behind, use_cache=False).logits[0]


def by_hand(family: str, rows: list[dict[str, Any]], *, teacher: bool, temperature: float, smoothing: float) -> Tensor:
    """The gradient of 0.5·hard + 0.5·soft over all tokens of `rows`, one row at a time, written with torch's own losses."""
    student, master = tiny_seq2seq(family, 1), tiny_seq2seq(family, 2)
    if family != "fsmt":  # its mask does without float64
        student, master = student.double(), master.double()
    rows = [row for row in rows if row["labels"][0] != -100]
    items = sum(len(row["labels"]) for row in rows)
    for row in rows:
        logits = said(student, row)
        loss = F.cross_entropy(logits, torch.tensor(row["labels"]), label_smoothing=smoothing, reduction="sum")
        if teacher:
            with torch.no_grad():
                targets = (said(master, row) / temperature).log_softmax(-1)
            mine = (logits / temperature).log_softmax(-1)
            loss = 0.5 * loss + 0.5 * temperature**2 * F.kl_div(mine, targets, reduction="sum", log_target=True)
        (loss / items).backward()
    return gradient(student)


def first_step(tmp_path: Path, student: Any = None, teacher: Any = None, rows: Any = None, **more: Any) -> tuple:
    """The gradient and log of one step on all rows."""
    noted = Gradients()
    kept = {key: more.pop(key) for key in ("processing_class", "data_collator") if key in more}
    rows = ROWS if rows is None else rows
    args = arguments(tmp_path, per_device_train_batch_size=len(rows), learning_rate=0.0, **more)
    made = trainer(student or tiny_seq2seq(seed=1), args, rows, teacher_model=teacher, callbacks=[noted], **kept)
    made.train()
    return noted.found[0], made.state.log_history[0]


def slow_rows(model: Any) -> list[list[float]]:
    """Float64 logits of every target token of `ROWS`."""
    with torch.no_grad():
        logits = [said(model, row).double() for row in ROWS if row["labels"][0] != -100]
    return torch.cat(logits).tolist()


def restarted(model: Any, start: int) -> Any:
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
    return model


def saved(model: Any, words: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    if words is not None:
        words.save_pretrained(folder)
    return str(folder)
