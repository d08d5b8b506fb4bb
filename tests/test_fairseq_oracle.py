"""The training loss of our trainer beside fairseq's own, from the same weights over the same batches.

fairseq lives in an environment of its own, which `make test-slow` builds; HF_LSKD_FAIRSEQ_PYTHON names its Python.
"""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lskd import Seq2SeqDistillationArguments, Seq2SeqDistillationTrainer
from hf_lskd.data.cldr import load_cldr
from hf_lskd.data.token_batches import Seq2SeqCollator, TokenBatchSampler
from hf_lskd.data.tokenizer import train_bpe
from hf_lskd.data.translation import TranslationDataset
from hf_lskd.models.sequence import load_seq2seq, token_rows

STEPS, MAX_TOKENS, RATE, SEED = 50, 400, 5e-4, 7
ALPHA = 0.1
PYTHON = os.environ.get("HF_LSKD_FAIRSEQ_PYTHON", "")


def fairseq_positions(rows: int, dim: int, first: int) -> torch.Tensor:
    """fairseq's sinusoids for the positions from `first` on: all sines, then all cosines, of frequencies 10000^(−i/(half − 1))."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10000) / (half - 1)))
    angles = torch.arange(first, first + rows, dtype=torch.float).unsqueeze(1) * frequencies.unsqueeze(0)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def model_as_fairseqs(tokenizer: Any) -> Any:
    """`transformer_iwslt_de_en` without dropout, its decoder begun by the end token and its positions fairseq's."""
    torch.manual_seed(SEED)
    shape = {"dropout": 0.0, "decoder_start_token_id": tokenizer.eos_token_id}
    model = load_seq2seq("transformer_iwslt_de_en", tokenizer=tokenizer, model_args=shape)
    for side in (model.model.encoder, model.model.decoder):
        table = side.embed_positions.weight
        table.data.copy_(fairseq_positions(*table.shape, first=tokenizer.pad_token_id + 1))
    return model


def leave_for_fairseq(folder: Path, model: Any, tokenizer: Any, batches: list[Any]) -> None:
    """The model, its batches and the settings as `fairseq_run.py` reads them."""
    rows = token_rows(tokenizer)
    settings = {
        "rows": rows,
        "pad": tokenizer.pad_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "learning_rate": RATE,
        "threads": torch.get_num_threads(),
        "label_smoothing": ALPHA * (rows - 1) / rows,  # fairseq gives each other token ε/(K−1), the paper and we α/K
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    torch.save(model.state_dict(), folder / "weights.pt")
    torch.save(batches, folder / "batches.pt")


def their_losses(folder: Path, model: Any, tokenizer: Any, batches: list[Any]) -> list[float]:
    """fairseq's loss of each step, in nats a token."""
    leave_for_fairseq(folder, model, tokenizer, batches)
    script = Path(__file__).with_name("fairseq_run.py")
    subprocess.run([PYTHON, "-W", "ignore", str(script), str(folder)], check=True)
    return [bits * math.log(2) for bits in json.loads((folder / "losses.json").read_text())]


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="fairseq needs an environment of its own: `make test-slow` builds it")
def test_fifty_steps_of_label_smoothed_training_have_fairseqs_losses(tmp_path: Path) -> None:
    pairs = load_cldr({"source_lang": "en", "target_lang": "de", "pairs": 4000}).train
    tokenizer = train_bpe([*pairs.sources, *pairs.targets], 1000)
    rows = TranslationDataset(pairs, tokenizer, max_length=100, drop_longer=True)
    order = list(TokenBatchSampler(rows.lengths, MAX_TOKENS, seed=SEED))[:STEPS]
    collator = Seq2SeqCollator(tokenizer.pad_token_id)
    batches = [{k: v for k, v in collator([rows[i] for i in batch]).items() if k != "example_id"} for batch in order]
    model = model_as_fairseqs(tokenizer)
    theirs = their_losses(tmp_path, model, tokenizer, batches)
    arguments = Seq2SeqDistillationArguments(
        str(tmp_path / "ours"), label_smoothing_factor=ALPHA, max_tokens=MAX_TOKENS, data_seed=SEED, max_steps=STEPS,
        learning_rate=RATE, lr_scheduler_type="constant", adam_beta2=0.98, max_grad_norm=0.0, logging_steps=1,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Seq2SeqDistillationTrainer(
        model, arguments, data_collator=collator, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    ours = [entry["hard_loss"] for entry in trainer.state.log_history if "hard_loss" in entry]
    assert len(ours) == len(theirs) == STEPS
    differences = [abs(a - b) / b for a, b in zip(ours, theirs)]
    print(f"\nloss {ours[0]:.4f} -> {ours[-1]:.4f}; relative difference, first and largest: {differences[0]:.1e}, "
          f"{max(differences):.1e}")  # fmt: skip
    assert ours[-1] < ours[0] - 2  # it is training
    assert differences[0] < 1e-5
    # Adam makes full steps of gradients that are rounding alone (the keys' biases, say), and sets ε in another place than torch.
    assert max(differences) < 5e-3
