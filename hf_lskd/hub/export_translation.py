"""Marian models as CTranslate2 holds them."""

import copy
from pathlib import Path
from typing import Any

import torch

from hf_lskd.errors import InputError
from hf_lskd.hub.export_beside import Beside, check_agreement, largest_difference
from hf_lskd.hub.export_source import Source
from hf_lskd.models.files import first_line
from hf_lskd.models.sequence import check_tokenizer, decoder_start, load_trained_seq2seq, rows_of, token_rows

PLAIN, SMALL = "float32", "int8"  # CTranslate2's names of precisions


def write_ctranslate2(source: Source, work: Path, int8: bool) -> dict[str, Any]:
    """Write the model and its tokenizer into `work`; returns the parts of export.json that are of this kind.

    Raises InputError for any model but Marian with one vocabulary, for one without its tokenizer, and for a float export
    whose log-probabilities differ from torch's.
    """
    check_architecture(source)
    tokenizer = tokenizer_in(source.folder)
    model = load_trained_seq2seq(str(source.folder)).float().eval()
    if token_rows(tokenizer) > (rows_of(model) or 0):
        raise InputError(
            f"{source.folder} has {rows_of(model)} token rows for a tokenizer of {token_rows(tokenizer)}",
            "the tokenizer that the model was trained with",
        )
    words = vocabulary(tokenizer, model.config.vocab_size)
    convert(model, tokenizer, words, work, PLAIN)
    beside = Beside.of(source, model, tokenizer, words, translator_of(work, PLAIN))
    check_agreement(largest_difference(beside))
    if int8:
        convert(model, tokenizer, words, work, SMALL)
        beside = beside.with_translator(translator_of(work, SMALL))
    size = (work / "model.bin").stat().st_size
    tokenizer.save_pretrained(work)
    return {
        **beside.judged(int8),
        "size_bytes": {"before": source.size, "after": size},
        "compute_type": SMALL if int8 else PLAIN,
    }


def check_architecture(source: Source) -> None:
    kind = source.config.get("model_type")
    if kind != "marian":
        has = "CTranslate2 has no loader for it" if kind == "fsmt" else "its conversion is not checked here"
        raise InputError(
            f"{source.folder} is of {kind}: {has}",
            "a Marian model (`model: marian` or `transformer_iwslt_de_en` in a recipe)",
            "Distil into a Marian student, and export that one.",
        )
    if not source.config.get("share_encoder_decoder_embeddings", True):
        raise InputError(f"{source.folder} has two vocabularies", "a Marian model that shares one")


def tokenizer_in(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(f"{folder} has no tokenizer", "a model saved with its tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"{folder} has a tokenizer that cannot be read ({first_line(error)})", "a whole one"
        ) from error
    check_tokenizer(tokenizer)
    return tokenizer


def convert(model: Any, tokenizer: Any, words: list[str], work: Path, precision: str) -> None:
    """CTranslate2's files into `work`, every row of the vocabulary kept and the decoder started by its own token.

    CTranslate2's own Marian loader drops the last row and starts from a zero embedding, which is right for models that come
    from Marian. Those trained here, with tied embeddings, learn a row for `<pad>`, and start with it (measured: 22 of 400
    translations equal with that loader, 400 with this one).
    """
    if (start := decoder_start(model)) is None:
        raise InputError("a model without decoder_start_token_id", "a Marian model that says how it starts")
    first = words[start]
    from ctranslate2.converters.transformers import BartLoader, MarianMTLoader

    class Loader(MarianMTLoader):
        def get_model_spec(self, model: Any) -> Any:
            model.config.normalize_before = False
            model.config.normalize_embedding = False
            return BartLoader.get_model_spec(self, model)

        def set_decoder(self, spec: Any, decoder: Any) -> None:
            BartLoader.set_decoder(self, spec, decoder)
            spec.start_from_zero_embedding = False

        def get_vocabulary(self, model: Any, tokenizer: Any) -> list[str]:
            return words

        def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
            config.eos_token = tokenizer.eos_token
            config.bos_token = tokenizer.bos_token or tokenizer.eos_token  # unused; None is no text
            config.unk_token = tokenizer.unk_token or tokenizer.eos_token
            config.decoder_start_token = first

    try:
        with torch.no_grad():
            spec = Loader()(copy.deepcopy(model), tokenizer)  # quantising changes the weights in place
            spec.validate()
            spec.optimize(quantization=None if precision == PLAIN else precision)
            spec.save(str(work))
    except (
        KeyError,
        ValueError,
        RuntimeError,
    ) as error:  # what its converter raises for shapes and names that it does not know
        raise InputError(f"CTranslate2 cannot hold this model ({first_line(error)})", "a plain Marian model") from error


def vocabulary(tokenizer: Any, rows: int) -> list[str]:
    """A token for each row of the embedding; rows that the tokenizer has no token for get a name of their own."""
    token_of = {index: token for token, index in tokenizer.get_vocab().items()}
    return [token_of.get(index, f"<row {index}>") for index in range(rows)]


def translator_of(folder: Path, precision: str) -> Any:
    import ctranslate2

    threads = torch.get_num_threads()
    return ctranslate2.Translator(
        str(folder), device="cpu", compute_type=precision, inter_threads=1, intra_threads=threads
    )
