"""What a fairseq checkpoint says of its model, and which models of transformers compute the same."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError

# fairseq's registered architectures with the plain Transformer's code (its models/transformer, 0.12).
ARCHITECTURES = re.compile(r"transformer(_iwslt.*|_wmt.*|_vaswani.*|_tiny|_2x|_4x)?")
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_accurate": "gelu_new", "tanh": "tanh", "swish": "silu"}
# Settings that change what the model computes and that neither FSMT nor M2M100 knows: the only value that is taken, and why.
PLAIN: dict[str, tuple[Any, str]] = {
    "encoder_learned_pos": (False, "its positions are learned"),
    "decoder_learned_pos": (False, "its positions are learned"),
    "no_token_positional_embeddings": (False, "it has no positions"),
    "layernorm_embedding": (False, "it normalises its embeddings"),
    "no_decoder_final_norm": (False, "its decoder lacks the last norm"),
    "no_cross_attention": (False, "its decoder does not see the source"),
    "cross_self_attention": (False, "its decoder attends to source and target at once"),
    "adaptive_input": (False, "its embeddings are adaptive"),
    "adaptive_softmax_cutoff": (None, "its softmax is adaptive"),
    "merge_src_tgt_embed": (False, "it merges two dictionaries"),
    "encoder_layers_to_keep": (None, "its encoder is pruned"),
    "decoder_layers_to_keep": (None, "its decoder is pruned"),
    "quant_noise_pq": (0, "it is trained with quantisation noise"),
    "quant_noise_scalar": (0, "it is trained with quantisation noise"),
    "base_layers": (0, "it has BASE layers"),
    "char_inputs": (False, "it reads characters"),
}  # fmt: skip


def read_settings(checkpoint: Any, path: Path) -> dict[str, Any]:
    """The model's and the task's settings in one flat mapping: of `cfg` (0.10 and later), or of `args` before.

    Raises InputError for a file that has neither.
    """
    found: dict[str, Any] = {}
    if isinstance(checkpoint, Mapping):
        whole = plain(checkpoint.get("cfg"))
        for part in (plain(checkpoint.get("args")), plain(whole.get("task")), plain(whole.get("model"))):
            found |= flat(part)
    if not found:
        raise InputError(
            f"{path} holds no settings of a fairseq model", "a checkpoint that fairseq-train wrote, with cfg or args"
        )
    return found


def plain(value: Any) -> dict[str, Any]:
    if isinstance(value, argparse.Namespace):
        return dict(vars(value))
    return dict(value) if isinstance(value, Mapping) else {}


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`encoder: {embed_dim}` as `encoder_embed_dim`: the hydra form of the same settings."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, Mapping) and key in ("encoder", "decoder", "quant_noise")
        found |= {f"{key}_{name}": one for name, one in value.items()} if inner else {key: value}
    return found


def check_settings(settings: Mapping[str, Any], path: Path) -> str:
    """`fsmt` or `m2m_100`: the kind of transformers that computes the same. Raises InputError that says why none does."""
    name = str(settings.get("arch") or settings.get("_name"))
    if not ARCHITECTURES.fullmatch(name):
        raise InputError(f"{path} is a {name}", "transformer, transformer_iwslt_de_en and its relatives")
    for key, (wanted, why) in PLAIN.items():
        if (settings.get(key) or wanted) != wanted:
            raise refused(path, name, f"{why} ({key} is {settings[key]})")
    width = number(settings, "encoder_embed_dim", path)
    for key in ("decoder_embed_dim", "decoder_input_dim", "decoder_output_dim"):
        if settings.get(key) not in (None, width):
            raise refused(path, name, f"{key} is {settings[key]} beside an encoder of {width}")
    if settings.get("activation_fn", "relu") not in ACTIVATIONS:
        raise refused(path, name, f"its activation is {settings['activation_fn']}")
    if width % 2 or width < 4:
        raise refused(path, name, f"its width is {width}, which fairseq's positions pad")
    before = [bool(settings.get(f"{side}_normalize_before")) for side in ("encoder", "decoder")]
    if before[0] != before[1]:
        raise refused(path, name, "one side normalises before its blocks and the other after them")
    if not before[0]:
        return "fsmt"
    if not settings.get("share_all_embeddings"):
        raise refused(path, name, "it normalises before its blocks and does not share all embeddings, as M2M100 does")
    return "m2m_100"


def refused(path: Path, name: str, why: str) -> InputError:
    return InputError(
        f"{path} is a {name} that no model of transformers computes: {why}",
        "norms after the blocks (FSMT), or before them with all embeddings shared (M2M100); sinusoidal positions",
    )


def number(settings: Mapping[str, Any], key: str, path: Path) -> int:
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{path}: {key} is {value!r}", "a whole number from 1, as fairseq-train writes it")
    return value


def model_config(kind: str, settings: Mapping[str, Any], sizes: tuple[int, int], languages: Any, path: Path) -> Any:
    """The configuration of transformers for these settings; `sizes` are the tokens of source and target dictionary."""
    from transformers import FSMTConfig, M2M100Config

    sides = {
        f"{side}_{ours}": number(settings, f"{side}_{theirs}", path)
        for side in ("encoder", "decoder")
        for ours, theirs in (
            ("layers", "layers"), ("ffn_dim", "ffn_embed_dim"), ("attention_heads", "attention_heads")
        )
    }  # fmt: skip
    common: dict[str, Any] = {
        **sides,
        "d_model": number(settings, "encoder_embed_dim", path),
        "activation_function": ACTIVATIONS[settings.get("activation_fn", "relu")],
        **{key: float(settings.get(key) or 0) for key in ("dropout", "attention_dropout", "activation_dropout")},
        **{key: float(settings.get(key) or 0) for key in ("encoder_layerdrop", "decoder_layerdrop")},
        "scale_embedding": not settings.get("no_scale_embedding"),
        "max_position_embeddings": min(positions(settings)),
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    }  # fmt: skip
    if kind == "m2m_100":
        return M2M100Config(vocab_size=sizes[1], tie_word_embeddings=True, **common)
    return FSMTConfig(
        langs=list(languages),
        src_vocab_size=sizes[0],
        tgt_vocab_size=sizes[1],
        tie_word_embeddings=bool(settings.get("share_all_embeddings")),
        forced_eos_token_id=None,
        **common,
    )


def positions(settings: Mapping[str, Any]) -> tuple[int, int]:
    """How many tokens the source and the target may have; fairseq's default is 1024."""
    return tuple(int(settings.get(f"max_{side}_positions") or 1024) for side in ("source", "target"))  # type: ignore[return-value]


def generation_config() -> Any:
    """fairseq-generate's defaults: 5 beams, stopped when as many translations are finished; never pad, never empty, and
    200 tokens at most besides the end."""
    from transformers import GenerationConfig

    return GenerationConfig(
        num_beams=5, early_stopping=True, length_penalty=1.0, max_length=202, min_new_tokens=1, suppress_tokens=[1],
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
