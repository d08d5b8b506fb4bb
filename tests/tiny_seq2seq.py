"""Tiny encoder-decoders of five families over one vocabulary, and ragged rows to train them on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

VOCABULARY, PAD, EOS = 24, 1, 2


def marian() -> Any:
    from transformers import MarianConfig, MarianMTModel

    return MarianMTModel(
        MarianConfig(vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
                     decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32,
                     pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD, forced_eos_token_id=None,
                     dropout=0.0, init_std=0.5)
    )  # fmt: skip


def bart() -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(
        BartConfig(vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
                   decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32,
                   pad_token_id=PAD, eos_token_id=EOS, bos_token_id=0, decoder_start_token_id=EOS,
                   forced_eos_token_id=None, dropout=0.0, init_std=0.5)
    )  # fmt: skip


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=PAD,
                 eos_token_id=EOS, decoder_start_token_id=PAD, dropout_rate=0.0, initializer_factor=3.0)
    )  # fmt: skip


def m2m100() -> Any:
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    return M2M100ForConditionalGeneration(
        M2M100Config(vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
                     decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32,
                     pad_token_id=PAD, eos_token_id=EOS, bos_token_id=0, decoder_start_token_id=EOS, dropout=0.0,
                     attention_dropout=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0, init_std=0.5)
    )  # fmt: skip


def fsmt() -> Any:
    from transformers import FSMTConfig, FSMTForConditionalGeneration

    return FSMTForConditionalGeneration(
        FSMTConfig(langs=["en", "de"], src_vocab_size=VOCABULARY, tgt_vocab_size=VOCABULARY, d_model=16, encoder_layers=1,
                   decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
                   decoder_attention_heads=2, max_position_embeddings=32, pad_token_id=PAD, eos_token_id=EOS,
                   bos_token_id=0, decoder_start_token_id=EOS, dropout=0.0, attention_dropout=0.0, init_std=0.5)
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], Any]] = {"marian": marian, "bart": bart, "t5": t5, "m2m100": m2m100, "fsmt": fsmt}


def tiny_seq2seq(family: str = "marian", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return FAMILIES[family]()


class Rows(Dataset):
    """Ragged pairs: `sizes` are the numbers of target tokens, eos among them; 0 is a row whose labels are all ignored."""

    def __init__(self, sizes: tuple[int, ...] = (3, 9, 2, 7, 5, 4, 8), seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        ids = lambda n: [*torch.randint(4, VOCABULARY, (max(n - 1, 0),), generator=draw).tolist(), EOS]  # noqa: E731
        self.rows = [
            {"input_ids": ids(n % 5 + 3), "labels": ids(n) if n else [-100, -100], "example_id": i}
            for i, n in enumerate(sizes)
        ]

    @property
    def lengths(self) -> list[tuple[int, int]]:
        return [(len(row["input_ids"]), len(row["labels"])) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def gradient(model: Any) -> Tensor:
    """All gradients of a model as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def tokenizer(tokens: int = VOCABULARY, words: dict[str, int] | None = None, **special: Any) -> Any:
    """Words w4, w5, … behind <s>, <pad>, </s> and <unk>, split at white space; `words` replaces the whole map."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(4, tokens))]
    backend = Tokenizer(WordLevel(words or {name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    named = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def arguments(folder: Any, **more: Any) -> Any:
    """Quiet training arguments: sequential order, plain SGD, no checkpoints."""
    from hf_lskd import Seq2SeqDistillationArguments

    usual = {
        "output_dir": str(folder),
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 2,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
    }
    return Seq2SeqDistillationArguments(**{**usual, **more})


def trainer(model: Any, args: Any, rows: Any = None, **kwargs: Any) -> Any:
    """Our trainer over `rows` with our collator, silent."""
    from transformers import PrinterCallback

    from hf_lskd import Seq2SeqDistillationTrainer
    from hf_lskd.data.token_batches import Seq2SeqCollator

    kind = kwargs.pop("kind", Seq2SeqDistillationTrainer)
    given = {"data_collator": Seq2SeqCollator(PAD), **kwargs}
    made = kind(model, args, train_dataset=rows, **given)
    made.remove_callback(PrinterCallback)
    return made


class Gradients(TrainerCallback):
    """The gradient of each optimisation step, as one vector."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.found.append(gradient(model).clone())


def steps(folder: Any, family: str, rows: Any, micro: int, accumulation: int, *, teacher: bool, collator: Any = None,
          double: bool = False, **more: Any) -> tuple[list[Tensor], list[dict]]:  # fmt: skip
    """The gradients and logs of one epoch with weights that stay as they are, cut into micro-batches of `micro` rows."""
    noted = Gradients()
    student, master = (tiny_seq2seq(family, seed).double() if double else tiny_seq2seq(family, seed) for seed in (1, 2))
    made = trainer(
        student,
        arguments(folder, learning_rate=0.0, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
                  kd_weight=0.5, **more),
        rows,
        teacher_model=master if teacher else None,
        callbacks=[noted],
        **({} if collator is None else {"data_collator": collator}),
    )  # fmt: skip
    made.train()
    return noted.found, [entry for entry in made.state.log_history if "loss" in entry]


def off(one: Tensor, other: Tensor) -> float:
    """Relative distance of two gradients."""
    return float((one.double() - other.double()).norm() / other.double().norm())
