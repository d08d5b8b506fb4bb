"""Translations of a list of sentences by an encoder-decoder, resumable after a kill."""

import copy
import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from hf_lskd.errors import InputError
from hf_lskd.models.sequence import check_tokenizer, decoder_start, is_encoder_decoder
from hf_lskd.translation_files import PartialFile, Row, Translation, check_suffix, read_sources, write_translations

__all__ = ["Translation", "read_sources", "translate_corpus"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What decides the translations besides model, tokenizer and sentences. Raises InputError for values out of range."""

    beams: int
    max_tokens: int
    max_length: int | None
    length_penalty: float

    def __post_init__(self) -> None:
        for name in ("beams", "max_tokens", "max_length"):
            value = getattr(self, name)
            if name == "max_length" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} {value!r}", "a whole number from 1")
        if not math.isfinite(self.length_penalty):
            raise InputError(f"length_penalty {self.length_penalty}", "a finite number")


def translate_corpus(
    model: Any,
    tokenizer: Any,
    sources: Sequence[str],
    output: Path | None = None,
    *,
    beams: int = 4,
    max_tokens: int = 4096,
    max_length: int | None = None,
    length_penalty: float = 1.0,
    device: torch.device | str | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Translation]:
    """The model's translation of each sentence, in their order: beam search, greedy with one beam.

    Sentences go by length in batches of at most `max_tokens` padded source tokens x beams. A translation has at most
    `max_length` tokens, its end included (None: twice the longest source of its batch and 50), and never more than the
    model has positions; how many were cut there is logged. What else the model's generation config asks for holds.

    `output` (.tsv source and translation, .txt, .jsonl with source, target, score) is written whole at the end. Until then
    `.NAME.partial` beside it keeps the finished batches: the same call after a kill goes on from there, to the same bytes.
    `device` (None: where the model is) and evaluation mode hold while it runs. `on_batch` gets (sentences done, all).
    Raises InputError for no or empty sentences, a model that is no encoder-decoder, a tokenizer that does not fit it,
    options out of range, and an `output` of another kind.
    """
    options = Options(beams, max_tokens, max_length, length_penalty)
    _check(model, tokenizer, sources)
    if output is not None:
        check_suffix(output)
        output.parent.mkdir(parents=True, exist_ok=True)
    with _evaluating(model, device):
        tokens = _encoded(model, tokenizer, sources)
        batches = _batches([len(row) for row in tokens], options)
        partial = None
        if output is not None:
            partial = PartialFile(output, _fingerprint(model, tokenizer, sources, tokens, options), batches)
        made = {row.id: row for row in partial.rows} if partial is not None else {}
        try:
            for batch in batches[partial.done if partial is not None else 0 :]:
                rows = _translate_batch(model, tokenizer, {index: tokens[index] for index in batch}, options)
                made |= {row.id: row for row in rows}
                if partial is not None:
                    partial.add(rows)
                if on_batch is not None:
                    on_batch(len(made), len(sources))
        finally:
            if partial is not None:
                partial.close()
    translations = [Translation(made[i].text, made[i].score, made[i].cut) for i in range(len(sources))]
    if output is not None and partial is not None:
        write_translations(output, sources, translations)
        partial.remove()
    cut = sum(row.cut for row in made.values())
    if cut:
        logger.warning(
            "%d of %d translations%s had not ended at their largest length and were cut. Raise max_length, or train for longer.",
            *(cut, len(sources), "" if output is None else f" for {output}"),
        )
    return translations


def _check(model: Any, tokenizer: Any, sources: Sequence[str]) -> None:
    if not is_encoder_decoder(model):
        raise InputError(f"{type(model).__name__} is no encoder-decoder", "a seq2seq model")
    if decoder_start(model) is None:  # generate would take bos, which is not what mBART was trained to start with
        raise InputError(
            f"{type(model).__name__} has no decoder_start_token_id",
            "a model that says how decoding starts",
            "Set model.generation_config.decoder_start_token_id (for mBART, the target language's token).",
        )
    check_tokenizer(tokenizer)
    if isinstance(sources, str) or not len(sources):
        raise InputError("one string" if sources else "no sentences", "a list of at least one sentence")
    for number, source in enumerate(sources, start=1):
        if not source.strip():
            raise InputError(f"line {number} of {len(sources)} is empty", "a sentence in each line")


def _positions(model: Any) -> int | None:
    """How many tokens a side of the model has positions for; None where they are relative."""
    return getattr(model.config, "max_position_embeddings", None)


def _encoded(model: Any, tokenizer: Any, sources: Sequence[str]) -> list[list[int]]:
    """Token ids of each sentence, cut to the model's positions. Raises InputError for ids that the model has no row for."""
    rows: list[list[int]] = tokenizer(list(sources), verbose=False)["input_ids"]
    limit = _positions(model)
    long = [i for i, row in enumerate(rows) if limit is not None and len(row) > limit]
    if long:
        logger.warning("%d of %d sources are longer than %d tokens and were cut.", len(long), len(rows), limit)
        cut = tokenizer([sources[i] for i in long], truncation=True, max_length=limit)["input_ids"]
        for index, row in zip(long, cut):
            rows[index] = row
    known = model.get_input_embeddings().weight.shape[0]
    for number, row in enumerate(rows, start=1):
        if not row:
            raise InputError(f"line {number} becomes no token", "sentences that the tokenizer keeps something of")
        if max(row) >= known:
            raise InputError(
                f"line {number} has token {max(row)} for a model of {known} token rows", "the model's own tokenizer"
            )
    return rows


def _batches(lengths: Sequence[int], options: Options) -> list[list[int]]:
    """Sentence indices, the longest first, so that memory fails at once or not at all; one sentence may be over the limit."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        widest = lengths[batches[-1][0]] if batches else 0
        if not batches or (len(batches[-1]) + 1) * widest * options.beams > options.max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


class _StepScores(StoppingCriteria):
    """Stops nothing. Notes the log-probability of each greedy token, and frees each step's scores `[B x beams, V]`.

    Without it, `generate` keeps those of all steps, as the price of the sequences' scores: gigabytes for short sentences.
    """

    def __init__(self, beams: int) -> None:
        self.beams = beams
        self.chosen: list[Tensor] = []  # a step each, [B]

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        if self.beams == 1:
            log_probs = scores[-1].float().log_softmax(-1)
            self.chosen.append(log_probs.gather(-1, input_ids[:, -1:]).squeeze(-1))
        scores[-1].resize_(0)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def _translate_batch(model: Any, tokenizer: Any, tokens: dict[int, list[int]], options: Options) -> list[Row]:
    """Translations of one batch of {sentence index: token ids}."""
    width = max(map(len, tokens.values()))
    input_ids = torch.full((len(tokens), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(input_ids)
    for i, row in enumerate(tokens.values()):
        input_ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    limit = min(options.max_length or 2 * width + 50, _positions(model) or sys.maxsize)
    steps = _StepScores(options.beams)
    with _generation_config(model, tokenizer, options, limit) as config:
        found = model.generate(
            input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            stopping_criteria=StoppingCriteriaList([steps]),
        )
    lengths, cut = _ends(found.sequences[:, 1:], config, limit)
    if options.beams == 1:
        log_probs = torch.stack(steps.chosen, dim=1)
        inside = torch.arange(log_probs.shape[1], device=lengths.device) < lengths[:, None]
        scores = log_probs.where(inside, 0.0).sum(1) / lengths**options.length_penalty
    else:
        scores = found.sequences_scores
    texts = [text.strip() for text in tokenizer.batch_decode(found.sequences, skip_special_tokens=True)]
    return [Row(*one) for one in zip(tokens, texts, scores.tolist(), cut.tolist())]


@contextmanager
def _generation_config(model: Any, tokenizer: Any, options: Options, limit: int) -> Iterator[Any]:
    """The model's generation config with ours on top: nothing drawn at random, at most `limit` tokens; put back afterwards.

    It has to be the model's own for the while: what is None in a config that `generate` is given comes from the model's.
    """
    before = model.generation_config
    config = copy.deepcopy(before)
    beam = options.beams > 1
    ours = {
        "num_beams": options.beams,
        "length_penalty": options.length_penalty if beam else None,
        "early_stopping": config.early_stopping if beam else None,
        "max_new_tokens": limit,
        "num_return_sequences": 1,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_scores": True,
        "pad_token_id": tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id if config.eos_token_id is None else config.eos_token_id,
    }
    unset = dict.fromkeys(("max_length", "temperature", "top_k", "top_p", "min_p", "typical_p"))
    for name, value in {**ours, **unset}.items():
        setattr(config, name, value)
    model.generation_config = config
    try:
        yield config
    finally:
        model.generation_config = before


def _ends(said: Tensor, config: Any, limit: int) -> tuple[Tensor, Tensor]:
    """Lengths `[B]` in tokens of the sequences `said [B, L]`, their ends included, and which of them were cut.

    An end that the config forces at the last place is a cut.
    """
    ends = torch.isin(said, torch.tensor(config.eos_token_id, device=said.device))
    ended = ends.any(1)
    lengths = torch.where(ended, ends.int().argmax(1) + 1, said.shape[1])
    if config.forced_eos_token_id is not None:
        ended &= lengths < limit
    return lengths, ~ended


@contextmanager
def _evaluating(model: Any, device: torch.device | str | None) -> Iterator[None]:
    """The model in evaluation mode and on `device`; afterwards each module's mode and the device are as before."""
    training = {module: module.training for module in model.modules()}
    before = model.device
    try:
        model.eval()
        if device is not None:
            model.to(device)
        yield
    finally:
        if device is not None:
            model.to(before)
        for module, mode in training.items():
            module.training = mode


def _fingerprint(
    model: Any, tokenizer: Any, sources: Sequence[str], tokens: Sequence[Sequence[int]], options: Options
) -> str:
    """SHA-256 (hex) over everything that decides the translations, every weight included."""
    facts = [
        list(sources),
        list(tokens),
        asdict(options),
        {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"},
        model.generation_config.to_dict(),
        sorted(tokenizer.get_vocab().items()),
        [torch.__version__, transformers.__version__, model.device.type],
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
