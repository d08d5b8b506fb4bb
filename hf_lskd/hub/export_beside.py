"""What a CTranslate2 export says beside torch: scores of given tokens, translations, BLEU, and how long they take."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from hf_lskd.errors import InputError
from hf_lskd.generation import translate_corpus
from hf_lskd.hub.export_source import Source
from hf_lskd.hub.latency import side_by_side
from hf_lskd.metrics import score_translations
from hf_lskd.models.sequence import decoder_inputs
from hf_lskd.recipe import DecodingSpec

TOLERANCE = 1e-3  # nats a token, in float32 (measured: 1e-5 for the CLDR students)
NEAR = 0.1  # BLEU: more, with scores that agree, is the search's doing and is said
RANDOM = 64  # pairs of random tokens where there are no data
BATCH = 32

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Beside:
    """Torch's model and CTranslate2's, and the sentences that both are judged on.

    `words` has the token of each id. `references` is empty where there are no data: `texts` are then random tokens.
    `targets` are token ids without an end.
    """

    model: Any
    tokenizer: Any
    words: Sequence[str]
    translator: Any
    texts: Sequence[str]
    references: Sequence[str]
    sources: Ids
    targets: Ids
    decoding: DecodingSpec
    data: Any = None  # the parallel text that the references are of

    @classmethod
    def of(cls, source: Source, model: Any, tokenizer: Any, words: Sequence[str], translator: Any) -> "Beside":
        task: Any = source.task
        if task is None:
            sources, targets = random_ids(tokenizer, len(words))
            texts = [tokenizer.decode(row, skip_special_tokens=True) or "a" for row in sources]
            return cls(model, tokenizer, words, translator, texts, [], sources, targets, DecodingSpec())
        held_out, data = task.source.held_out, task.source
        cut = {"truncation": True, "max_length": model.config.max_position_embeddings}
        targets = tokenizer(text_target=list(held_out.targets), **cut)["input_ids"]
        return cls(
            *(model, tokenizer, words, translator, list(held_out.sources), list(held_out.targets)),
            tokenizer(list(held_out.sources), **cut)["input_ids"],
            [row[:-1] if row and row[-1] == tokenizer.eos_token_id else row for row in targets],
            task.decoding,
            data,
        )

    def with_translator(self, translator: Any) -> "Beside":
        return replace(self, translator=translator)

    @property
    def limit(self) -> int:
        """Most tokens of a translation, for both."""
        asked = self.decoding.max_length or 2 * max(map(len, self.sources)) + 50
        return min(asked, self.model.config.max_position_embeddings)

    @property
    def options(self) -> dict[str, Any]:
        """The decoding, as CTranslate2 takes it; words that the model's generation config never says among it."""
        banned = [[self.words[i] for i in row] for row in self.model.generation_config.bad_words_ids or []]
        return {
            "beam_size": self.decoding.beams,
            "length_penalty": self.decoding.length_penalty,
            "max_decoding_length": self.limit,
            **({"suppress_sequences": banned} if banned else {}),
        }

    def by_torch(self, texts: Sequence[str]) -> list[str]:
        how = {"beams": self.decoding.beams, "length_penalty": self.decoding.length_penalty, "max_length": self.limit}
        return [row.text for row in translate_corpus(self.model, self.tokenizer, texts, **how)]  # type: ignore[arg-type]

    def exported(self, texts: Sequence[str]) -> list[str]:
        cut = {"truncation": True, "max_length": self.model.config.max_position_embeddings}
        lines = [[self.words[i] for i in row] for row in self.tokenizer(list(texts), **cut)["input_ids"]]
        said = self.translator.translate_batch(lines, max_batch_size=BATCH, **self.options)
        ids = [self.tokenizer.convert_tokens_to_ids(row.hypotheses[0]) for row in said]
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def judged(self, int8: bool) -> dict[str, Any]:
        """Agreement, BLEU before and after, latency, and the decoding that all of it holds for."""
        gap, tokens = largest_difference(self)
        before, after = (said(self.texts) if self.references else [] for said in (self.by_torch, self.exported))
        same = sum(one == other for one, other in zip(before, after))
        return {
            **bleu(self, before, after, int8),
            "agreement": {
                "of": "log-probabilities of target tokens",
                "on": "held-out pairs, teacher-forced" if before else "random tokens, since no data were given",
                "examples": tokens,
                "largest_difference": gap,
                "tolerance": None if int8 else TOLERANCE,
                "same_translations": same if before else None,
                "words": f"{same} of {len(before)} translations equal" if before else f"on {tokens} random tokens",
            },
            "decoding": {**self.options, "call": "translator.translate_batch(tokens, **decoding)"},
            "latency_ms": timed(self),
        }


def random_ids(tokenizer: Any, rows: int) -> tuple[list[list[int]], list[list[int]]]:
    """Sources that end as sentences do, and targets, of tokens that are no special ones."""
    draw = torch.Generator().manual_seed(0)
    plain = torch.tensor([i for i in range(rows) if i not in tokenizer.all_special_ids])

    def line(count: int) -> list[int]:
        return plain[torch.randint(len(plain), (count,), generator=draw)].tolist()

    sources = [[*line(1 + n % 12), tokenizer.eos_token_id] for n in range(RANDOM)]
    return sources, [line(1 + n % 9) for n in range(RANDOM)]


@torch.no_grad()
def largest_difference(beside: Beside) -> tuple[float, int]:
    """Largest difference in nats of a target token's log-probability under teacher forcing, and how many were compared."""
    lines = [[[beside.words[i] for i in row] for row in side] for side in (beside.sources, beside.targets)]
    scored = beside.translator.score_batch(*lines, max_batch_size=BATCH)
    worst, count = 0.0, 0
    for start in range(0, len(scored), BATCH):
        rows = slice(start, start + BATCH)
        ends = [[*row, beside.tokenizer.eos_token_id] for row in beside.targets[rows]]
        for ours, theirs in zip(token_scores(beside.model, beside.sources[rows], ends), scored[rows]):
            found = torch.tensor(theirs.log_probs)
            gap = float((ours - found).abs().max()) if len(found) == len(ours) else float("inf")
            worst, count = max(worst, gap if gap == gap else float("inf")), count + len(ours)
    return worst, count


def token_scores(model: Any, sources: Ids, targets: Ids) -> list[torch.Tensor]:
    """Log-probabilities in nats of each target's tokens behind the model's own start, by torch."""
    ids, labels = padded(sources, model.config.pad_token_id), padded(targets, -100)
    mask = padded([[1] * len(row) for row in sources], 0)
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_inputs(model, labels)).logits
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return [row[: len(target)] for row, target in zip(chosen, targets)]


def padded(rows: Ids, value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def check_agreement(found: tuple[float, int]) -> None:
    """Raise InputError for a float export whose log-probabilities are not torch's."""
    if found[0] > TOLERANCE:
        raise InputError(
            f"the CTranslate2 export differs from torch by {found[0]:.2g} nats for a token",
            f"{TOLERANCE:g} nats",
            "It was not kept: it is not the model that was trained.",
        )


def timed(beside: Beside) -> dict[str, Any]:
    """Latency of one sentence, text to text, without a warning for each that is cut: that was said of all of them."""
    logger = logging.getLogger(translate_corpus.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    texts = beside.texts
    try:
        found = side_by_side(
            *(lambda n, said=said: said([texts[n % len(texts)]]) for said in (beside.by_torch, beside.exported))
        )
    finally:
        logger.setLevel(level)
    return {**found, "batch": 1, "threads": torch.get_num_threads(), "of": "one sentence, text to text, each in turn"}


def bleu(beside: Beside, before: Sequence[str], after: Sequence[str], int8: bool) -> dict[str, Any]:
    """BLEU on the held-out pairs in torch and exported, with its signature; nothing where there are no data."""
    if not before:
        return {"metrics": {}}
    score = partial(score_translations, target_lang=beside.data.target_lang, tokenised=beside.data.tokenised)
    ours, theirs = (score(texts, beside.references) for texts in (before, after))
    made: dict[str, Any] = {
        "metrics": {"bleu": {"before": ours.bleu, "after": theirs.bleu}},
        "bleu_signature": theirs.bleu_signature,
    }
    if not int8 and abs(theirs.bleu - ours.bleu) > NEAR:
        made["note"] = (
            "BLEU differs although scores agree to the tolerance said: the two searches end or prune differently"
        )
    return made
