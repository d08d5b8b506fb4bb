"""Encoder-decoder models: from names, folders and shapes; how their decoders start; and what their output layer reads."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_lskd.errors import InputError, nearest
from hf_lskd.models.files import first_line

# fairseq's names of the paper's shapes (facts: 6+6 layers, d 512, ffn 1024, 4 heads; the small one 2+2 layers, d 256).
_IWSLT = {"encoder_layers": 6, "decoder_layers": 6, "d_model": 512, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024,
          "encoder_attention_heads": 4, "decoder_attention_heads": 4, "dropout": 0.3, "activation_function": "relu"}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "transformer_iwslt_de_en": _IWSLT,
    "transformer_iwslt_de_en_small": {**_IWSLT, "encoder_layers": 2, "decoder_layers": 2, "d_model": 256,
                                      "encoder_ffn_dim": 512, "decoder_ffn_dim": 512},
    "marian": {},
}  # fmt: skip


def load_seq2seq(
    name: str,
    *,
    tokenizer: Any = None,
    pretrained: bool | str = True,
    model_args: Mapping[str, Any] | None = None,
) -> Any:
    """An encoder-decoder model from the name of a shape (`SHAPES`: Marian, from scratch), a folder, or a Hub id.

    A shape takes its vocabulary from `tokenizer`. For folders and ids `pretrained` True loads the weights, False draws new
    ones for the same configuration, a path loads them from there. `model_args` override the configuration.
    Raises InputError for an unknown name, for what is no encoder-decoder, and for arguments that the configuration has not.
    """
    own_args = dict(model_args or {})
    if name in SHAPES:
        if isinstance(pretrained, str):
            return load_trained_seq2seq(pretrained)
        return marian(name, tokenizer, own_args)
    config = _config(name, own_args)
    try:
        from transformers import AutoModelForSeq2SeqLM

        if pretrained is False:
            return AutoModelForSeq2SeqLM.from_config(config)
        return AutoModelForSeq2SeqLM.from_pretrained(name if pretrained is True else str(pretrained), config=config)
    except Exception as error:  # whatever the library raises is about what lies there
        raise _unreadable(name, error) from error


def load_trained_seq2seq(name: str) -> Any:
    """A finished encoder-decoder from a folder or a name. Raises InputError when any weight is missing or does not fit."""
    from transformers import AutoModelForSeq2SeqLM

    _config(name, {})
    try:
        model, report = AutoModelForSeq2SeqLM.from_pretrained(name, output_loading_info=True)
    except Exception as error:  # a pickle that is no weights is refused by a kind of its own
        raise _unreadable(name, error) from error
    unloaded = sorted([*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])])
    if unloaded:
        raise InputError(
            f"{name} loads with {len(unloaded)} missing or mismatched weights, such as {unloaded[0]}",
            "a checkpoint that holds every weight of its model",
            "A teacher with random weights teaches noise.",
        )
    return model


def marian(name: str, tokenizer: Any, model_args: Mapping[str, Any]) -> Any:
    """A fresh Marian model of a known shape over a tokenizer's vocabulary, embeddings shared throughout.

    `<pad>` starts the decoder, as in Marian's own models; its row of the embedding begins at zero.
    """
    from transformers import MarianConfig, MarianMTModel

    if tokenizer is None:
        raise InputError(f"model {name!r} without a tokenizer", "a tokenizer, whose vocabulary the new model gets")
    check_tokenizer(tokenizer)
    rows = token_rows(tokenizer)
    settings = {
        "vocab_size": rows,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "forced_eos_token_id": None,
        "bos_token_id": tokenizer.bos_token_id,
        "max_position_embeddings": 512,
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        **SHAPES[name],
        **model_args,
    }
    known = MarianConfig().to_dict()
    for key in settings:
        if key not in known:
            raise InputError(f"model_args: {key}", "arguments of MarianConfig", nearest(key, list(known)))
    try:
        model: Any = MarianMTModel(MarianConfig(**settings))
    except Exception as error:  # transformers has several kinds for a shape that cannot be
        raise InputError(
            f"model_args of {name!r}: {' '.join(str(error).split())}", "a shape that MarianConfig takes"
        ) from error
    scale = settings["d_model"] if "d_model" in settings else known["d_model"]
    with torch.no_grad():  # fairseq's initialisation: its logits start near unit size, Marian's own near zero
        embedding = model.get_input_embeddings().weight
        embedding.normal_(0, scale**-0.5)
        embedding[tokenizer.pad_token_id].zero_()
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight is not embedding:
                nn.init.xavier_uniform_(module.weight)
    return model


def begin_in_language(model: Any, tokenizer: Any) -> None:
    """Let a multilingual model's decoding begin with the tokenizer's target language; other models are left as they are."""
    target = getattr(tokenizer, "tgt_lang", None)
    if target is None:
        return
    codes = tokenizer.all_special_tokens  # FSMT's vocabulary has "de" as a piece of words
    token = next((name for name in (target, f"__{target}__") if name in codes), None)
    if token is not None:
        model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids(token)


def check_tokenizer(tokenizer: Any) -> None:
    """Raise InputError for a tokenizer without the tokens that batches and decoding need."""
    for token in ("pad", "eos"):
        if getattr(tokenizer, f"{token}_token_id", None) is None:
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise InputError(
                f"the tokenizer {name} has no {token} token",
                "a tokenizer with pad and eos",
                f'Set one: tokenizer.add_special_tokens({{"{token}_token": "<{token}>"}}).',
            )


def token_rows(tokenizer: Any) -> int:
    """How many rows of an embedding the tokenizer's ids need."""
    return max(tokenizer.get_vocab().values()) + 1


def rows_of(model: Any) -> int | None:
    """How many tokens a model has logits for."""
    layer = model.get_output_embeddings()
    return None if layer is None else int(layer.weight.shape[0])


def is_encoder_decoder(model: Any) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def decoder_start(model: Any) -> int | None:
    """The token that the model's decoder starts with; None where the model only knows how to shift labels itself (mBART)."""
    for settings in (model.config, getattr(model, "generation_config", None)):
        start = getattr(settings, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    return None


def decoder_inputs(model: Any, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Labels `[B, L]` shifted right behind the model's own start token: what its decoder reads under teacher forcing.

    Works on a clone (FSMT's own shift writes pad ids into the labels that it is given), with pad where labels are ignored.
    Raises InputError for a model that neither has a start token nor shifts labels itself.
    """
    pad = model.config.pad_token_id
    start = decoder_start(model)
    if start is None:
        if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
            raise InputError(
                f"{type(model).__name__} has no decoder_start_token_id", "an encoder-decoder that says how it starts"
            )
        return model.prepare_decoder_input_ids_from_labels(labels.masked_fill(labels.eq(ignore_index), pad))
    shifted = labels.new_empty(labels.shape)
    shifted[:, 0] = start
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill_(shifted.eq(ignore_index), pad if pad is not None else 0)


@contextmanager
def reading_decoder(model: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function that gives, after a forward pass that returned logits `[B, L, V]`, the decoder's last hidden states `[B, L, D]`.

    Raises InputError when they are not of the logits' shape.
    """
    passed: list[Tensor] = []

    def note(_: nn.Module, inputs: Any, output: Any) -> None:
        passed.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    def note_input(_: nn.Module, inputs: Any) -> None:
        passed.append(inputs[0])

    def read(logits: Tensor) -> Tensor:
        if not passed or passed[-1].shape[:-1] != logits.shape[:-1]:
            raise InputError(
                f"the decoder of {type(model).__name__} gives no hidden state for each token", "a decoder that does"
            )
        states = passed[-1]
        passed.clear()
        return states

    decoder = model.get_decoder()
    last = getattr(decoder, "output_projection", None)  # FSMT's decoder ends in the logits
    hook = decoder.register_forward_hook(note) if last is None else last.register_forward_pre_hook(note_input)
    try:
        yield read
    finally:
        hook.remove()


def output_weights(model: Any) -> tuple[Tensor, Tensor | None]:
    """Weight `[V, D]` and bias `[V]` (or None) of the layer that turns decoder states into logits, on the CPU."""
    layer = getattr(model.get_decoder(), "output_projection", None)  # FSMT's own
    layer = model.get_output_embeddings() if layer is None else layer
    bias = getattr(model, "final_logits_bias", None)
    bias = getattr(layer, "bias", None) if bias is None else bias
    return layer.weight.detach().cpu(), None if bias is None else bias.detach().flatten().cpu()


def tokenizer_beside(model: Any) -> Any:
    """The tokenizer in the folder, or of the Hub's name in the local cache, that a model was loaded from; None where there is
    none. Nothing is fetched."""
    from transformers import AutoTokenizer

    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    if not name or (Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").is_file()):
        return None
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, ImportError):
        return None


def target_tokens(tokenizer: Any) -> Mapping[str, int]:
    """The token map of what a model says. (Marian's and FSMT's own tokenizers give that of the source by `get_vocab`.)"""
    said = getattr(tokenizer, "decoder", None)  # {id: token} there, of the target; no mapping in the others
    if isinstance(said, Mapping):
        return {token: index for index, token in said.items()}
    return tokenizer.get_vocab()


def _config(name: str, own_args: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(name, error) from error
    if not getattr(config, "is_encoder_decoder", False):
        raise InputError(f"model {name!r} ({config.model_type}) is no encoder-decoder", "a seq2seq model")
    for key, value in own_args.items():
        if not hasattr(config, key):
            raise InputError(
                f"model_args: {key}", f"arguments of {type(config).__name__}", nearest(key, list(config.to_dict()))
            )
        setattr(config, key, value)
    return config


def _unreadable(name: str, error: Exception) -> InputError:
    if name in SHAPES:
        return InputError(f"{name!r} is a shape without weights", "a finished model: its folder, or a Hub id")
    return InputError(
        f"model {name!r} cannot be read ({first_line(error)})",
        f"a local folder, a Hub id of an encoder-decoder, or (to be trained) {', '.join(SHAPES)}",
        nearest(name, list(SHAPES)),
    )
