"""Corpus scores of translations, as the `sacrebleu` command gives them, and a paired bootstrap test of two systems."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hf_lskd.errors import InputError, nearest

ORDER = 4  # of the n-grams that BLEU and the repetition rate count
EVALUATE_METRICS = ("bleu", "chrf")


@dataclass(frozen=True)
class TranslationScore:
    """Scores of one corpus, with the signatures that say how each was computed.

    `bleu`, `chrf`: 0 to 100, equal to the `sacrebleu` command's. `bleu_tok_lc`: BLEU in the style of the IWSLT papers, over
    Moses tokens in lower case; not comparable with `bleu`. `length_ratio`: hypothesis over reference length in `bleu`'s
    tokens. `repetition_rate`: see the function.
    """

    bleu: float
    chrf: float
    bleu_tok_lc: float
    length_ratio: float
    repetition_rate: float
    bleu_signature: str
    chrf_signature: str
    bleu_tok_lc_signature: str


class PairedDifference(NamedTuple):
    """BLEU of b minus BLEU of a, the 95 % bootstrap interval of that difference, and sacrebleu's p-value for it."""

    difference: float
    low: float
    high: float
    p_value: float
    signature: str


def score_translations(
    hypotheses: Sequence[str], references: Sequence[str], *, target_lang: str, tokenised: bool = False
) -> TranslationScore:
    """Scores of `hypotheses` against one reference each, in the language `target_lang` ("de", "pt_BR").

    `tokenised`: the texts are Moses tokens already, lower-cased and escaped (the IWSLT papers' preparation). `bleu_tok_lc` is
    then taken on them as they stand, `bleu` and `chrf` after Moses' detokenisation; their signatures say so by `prep`.

    Spaces at the end of a line do not count, as in the command. Tokenisation is 13a; zh, ja and ko have sacrebleu's own.
    Raises InputError for empty input, unequal counts, references without a word, and a tokenizer that is not installed.
    """
    from sacrebleu.metrics import CHRF

    made, wanted = _lines("hypotheses", hypotheses), _lines("references", references)
    _check_counts({"hypotheses": made, "references": wanted})
    tokens, tokens_signature = _tokenised_bleu(made, wanted, _language(target_lang), tokenised)
    if tokenised:
        made, wanted = (detokenised(texts, _language(target_lang)) for texts in (made, wanted))
    bleu, chrf = bleu_metric(target_lang), CHRF()
    scored = bleu.corpus_score(made, [wanted])
    if not scored.ref_len:
        raise InputError(f"{len(wanted)} references without a word", "references with text in them")
    return TranslationScore(
        bleu=float(scored.score),
        chrf=float(chrf.corpus_score(made, [wanted]).score),
        bleu_tok_lc=tokens,
        length_ratio=scored.sys_len / scored.ref_len,
        repetition_rate=repetition_rate(made),
        bleu_signature=_signature(bleu, tokenised),
        chrf_signature=_signature(chrf, tokenised),
        bleu_tok_lc_signature=tokens_signature,
    )


def repetition_rate(hypotheses: Iterable[str]) -> float:
    """Percent of the corpus's 4-grams (of words between spaces) that occurred before in the same hypothesis.

    0 where no hypothesis has four words. A model that goes round in circles has a high one.
    """
    total = different = 0
    for line in hypotheses:
        words = line.split()
        grams = [tuple(words[i : i + ORDER]) for i in range(len(words) - ORDER + 1)]
        total += len(grams)
        different += len(set(grams))
    return 100 * (total - different) / total if total else 0.0


def paired_bootstrap(
    hypotheses_a: Sequence[str],
    hypotheses_b: Sequence[str],
    references: Sequence[str],
    *,
    target_lang: str,
    samples: int = 1000,
    seed: int = 12345,
) -> PairedDifference:
    """How sure the difference in BLEU between two systems is, by paired bootstrap resampling of sentences.

    The p-value is that of `sacrebleu --paired-bs` under SACREBLEU_SEED=`seed` with `a` as the baseline, its oddity included:
    two equal outputs have 1 / (`samples` + 1), not 1. The interval comes from the same resamples.
    Raises InputError for empty input, unequal counts, and `samples` or `seed` below 1 (sacrebleu takes seed 0 for none).
    """
    import numpy as np
    from sacrebleu.significance import PairedTest

    for name, value in (("samples", samples), ("seed", seed)):
        if value < 1:
            raise InputError(f"{name} {value}", "a whole number from 1")
    lines = {"hypotheses_a": hypotheses_a, "hypotheses_b": hypotheses_b, "references": references}
    a, b, wanted = (_lines(name, texts) for name, texts in lines.items())
    _check_counts({"hypotheses_a": a, "hypotheses_b": b, "references": wanted})
    bleu = bleu_metric(target_lang)
    test = PairedTest([("a", a), ("b", b)], {"BLEU": bleu}, [wanted], test_type="bs", n_samples=samples)
    test._seed = seed  # its only other way in is the environment, which is the whole process's
    signatures, scores = test()
    results: list[Any] = scores["BLEU"]
    signature = signatures["BLEU"]
    signature.update("seed", str(seed))
    draws = np.random.default_rng(seed).choice(len(wanted), size=(samples, len(wanted)), replace=True)
    resampled = np.array([resampled_bleu(bleu, texts, wanted, draws) for texts in (a, b)])
    differences = np.sort(resampled[1] - resampled[0])
    outside = samples // 40  # on either side, as sacrebleu cuts its intervals
    return PairedDifference(
        difference=float(results[1].score - results[0].score),
        low=float(differences[outside]),
        high=float(differences[samples - outside - 1]),
        p_value=float(results[1].p_value),
        signature=str(signature),
    )


def evaluate_metric(name: str, *, target_lang: str) -> Any:
    """BLEU ("bleu") or chrF ("chrf") as a metric of the `evaluate` library, made here: nothing is fetched.

    It takes `predictions` and `references` (one string each a sentence) and gives {name: score, "signature": …}.
    Raises InputError for an unknown name and where `evaluate` is not installed.
    """
    if name not in EVALUATE_METRICS:
        raise InputError(f"metric {name!r}", ", ".join(EVALUATE_METRICS), nearest(name, EVALUATE_METRICS))
    try:
        import evaluate
    except ImportError as error:
        raise InputError(
            "the package evaluate is not installed", "an environment with it", "Run `pip install evaluate`."
        ) from error
    from datasets import Features, Value

    class CorpusScore(evaluate.Metric):
        def _info(self) -> Any:
            text = {"predictions": Value("string"), "references": Value("string")}
            description = f"{name} of a corpus, one reference a sentence, equal to the sacrebleu command's."
            return evaluate.MetricInfo(description=description, citation="", features=Features(text))

        def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
            score = score_translations(predictions, references, target_lang=target_lang)
            return {name: getattr(score, name), "signature": getattr(score, f"{name}_signature")}

    CorpusScore.__name__ = name
    return CorpusScore(keep_in_memory=True)


def _language(code: str) -> str:
    """The two letters of a code that may have a region."""
    letters = code.replace("-", "_").split("_")[0].lower()
    if not letters:
        raise InputError(f"target_lang {code!r}", "a language code, such as de or pt_BR")
    return letters


def _lines(name: str, texts: Sequence[str]) -> list[str]:
    """Lines as the command reads them: without what is at their end."""
    if isinstance(texts, str):
        raise InputError(f"{name} is one string", "a list of strings, one a sentence")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{name}[{index}] is of type {type(text).__name__}", "strings, one a sentence")
    return [text.rstrip() for text in texts]


def _check_counts(lines: dict[str, list[str]]) -> None:
    counts = {name: len(texts) for name, texts in lines.items()}
    said = " and ".join(f"{count} {name}" for name, count in counts.items())
    if len(set(counts.values())) > 1:
        raise InputError(said, "as many of each")
    if not next(iter(counts.values())):
        raise InputError(said, "at least one of each")


def bleu_metric(target_lang: str) -> Any:
    """sacrebleu's BLEU with what it takes by default for the language."""
    from sacrebleu.metrics import BLEU

    language = _language(target_lang)
    try:
        return BLEU(trg_lang=language)
    except RuntimeError as error:
        raise InputError(
            f"sacrebleu's tokenizer for {language!r} is not installed",
            "an environment with it",
            f'Run `pip install "sacrebleu[{language}]"`.',
        ) from error


def detokenised(texts: Sequence[str], language: str) -> list[str]:
    """Moses tokens, escaped or not, as plain text."""
    from sacremoses import MosesDetokenizer

    moses = MosesDetokenizer(lang=language)
    return [moses.detokenize(text.split(), unescape=True) for text in texts]


def _signature(metric: Any, tokenised: bool) -> str:
    found = metric.get_signature()
    if tokenised:
        found.update("prep", "moses-lc-detokenised")
    return str(found)


def _tokenised_bleu(
    made: Sequence[str], wanted: Sequence[str], language: str, tokenised: bool = False
) -> tuple[float, str]:
    """BLEU of Moses tokens in lower case, and its signature. Tokenised first: abbreviations are known by their capitals."""
    from importlib.metadata import version

    from sacrebleu.metrics import BLEU
    from sacremoses import MosesTokenizer

    moses = MosesTokenizer(lang=language)
    split = (lambda text: text) if tokenised else (lambda text: moses.tokenize(text, return_str=True, escape=False))
    sides = [[split(text) for text in texts] for texts in (made, wanted)]
    bleu = BLEU(lowercase=True, tokenize="none", force=True)
    score = bleu.corpus_score(sides[0], [sides[1]]).score
    signature = bleu.get_signature()
    signature.update("tok", f"moses-{language}-sacremoses-{version('sacremoses')}")
    return float(score), str(signature)


def resampled_bleu(bleu: Any, texts: Sequence[str], wanted: Sequence[str], draws: Any) -> list[float]:
    """BLEU of each row of sentence numbers `draws [samples, N]`, from the sentences' n-gram counts."""
    import numpy as np

    counts = np.array(bleu._extract_corpus_statistics(texts, [wanted]), dtype="float32")
    return [bleu._compute_score_from_stats(counts[draw].sum(0)).score for draw in draws]
