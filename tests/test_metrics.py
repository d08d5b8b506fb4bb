"""Corpus scores against the `sacrebleu` command on the same files, and against numbers worked by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

from hf_lskd.errors import InputError
from hf_lskd.metrics import detokenised, evaluate_metric, paired_bootstrap, repetition_rate, score_translations

GERMAN = [
    "Das Haus, das wir 2019 kauften, kostete 3,5 Mio. Euro.",
    "„Wie geht's dir heute?“, fragte Dr. Müller.",
    "Wir haben keine Zeit – leider.",
    "Die Straße ist heute gesperrt worden, weil es schneit.",
]
GERMAN_MADE = [
    "Das Haus, das wir in 2019 kauften, kostete 3.5 Millionen Euro.  ",
    '"Wie geht es dir heute?", fragte dr. Müller.',
    "Wir haben leider keine Zeit.",
    "Die Strasse ist heute gesperrt, weil es schneit.",
]
GERMAN_OTHER = [
    "Das Haus, das wir 2019 kauften, kostete viel Geld.",
    "Wie geht es?",
    "",
    "Die Straße ist heute gesperrt worden, weil es schneit.",
]
RUSSIAN = ["Мы купили этот дом в 2019 году.", "«Как дела?» — спросил доктор Иванов.", "У нас нет времени, к сожалению."]
RUSSIAN_MADE = ["Мы купили дом в 2019 году.", "«Как дела?», спросил доктор Иванов.", "К сожалению, у нас нет времени."]
CHINESE = ["我们在2019年买了这所房子。", "你今天好吗？"]
CHINESE_MADE = ["我们2019年买了房子。", "你好吗？"]


def command(
    folder: Path, references: list[str], systems: list[list[str]], *options: str, seed: int | None = None
) -> Any:
    """What `sacrebleu` prints as JSON of these lines, with 17 digits."""
    names = [f"system{i}.txt" for i in range(len(systems))]
    for name, lines in zip(["references.txt", *names], [references, *systems]):
        (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    call = [sys.executable, "-m", "sacrebleu", "references.txt", "-i", *names, "-f", "json", "-w", "17", *options]
    environment = os.environ | ({"SACREBLEU_SEED": str(seed)} if seed is not None else {})
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("lang", "references", "made"),
    [("de", GERMAN, GERMAN_MADE), ("ru", RUSSIAN, RUSSIAN_MADE), ("zh", CHINESE, CHINESE_MADE)],
)
def test_scores_and_signatures_are_those_of_the_sacrebleu_command(
    tmp_path: Path, lang: str, references: list[str], made: list[str]
) -> None:
    bleu, chrf = command(tmp_path, references, [made], "-m", "bleu", "chrf", "-l", f"en-{lang}")
    found = score_translations(made, references, target_lang=lang)
    assert (found.bleu, found.bleu_signature) == (bleu["score"], bleu["signature"])
    assert (found.chrf, found.chrf_signature) == (chrf["score"], chrf["signature"])
    assert f"ratio = {found.length_ratio:.3f} " in bleu["verbose_score"]
    assert 0 < found.bleu < 100


def test_a_language_of_a_region_is_tokenised_as_the_language() -> None:
    assert "|tok:zh|" in score_translations(CHINESE_MADE, CHINESE, target_lang="zh_CN").bleu_signature
    assert "|tok:13a|" in score_translations(GERMAN_MADE, GERMAN, target_lang="de-AT").bleu_signature


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_tokenizer_that_is_not_installed_is_named(language: str) -> None:
    try:
        import ipadic  # noqa: F401
        import mecab_ko  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match=rf"sacrebleu\[{language}\]"):
            score_translations(["a"], ["a"], target_lang=language)
    else:
        assert f"tok:{language}-mecab" in score_translations(["a"], ["a"], target_lang=language).bleu_signature


def test_tokenised_lower_case_bleu_is_sacrebleus_over_moses_tokens(tmp_path: Path) -> None:
    """The tokens are written out by hand, so that both the order of the two steps and the nonbreaking prefixes count."""
    tokens = [
        "wie geht ' s dir heute , fragte dr. müller .",
        "das haus , das wir 2019 kauften , kostete 3,5 mio. euro .",
    ]
    made_tokens = [
        "wie geht es dir heute , fragte dr. müller .",
        "das haus , das wir 2019 hatten , kostete 3,5 mio. euro .",
    ]
    references = ["Wie geht's dir heute, fragte Dr. Müller.", "Das Haus, das wir 2019 kauften, kostete 3,5 Mio. Euro."]
    made = ["Wie geht es dir heute, fragte Dr. MÜLLER.", "das Haus, das wir 2019 hatten, kostete 3,5 Mio. Euro."]
    wanted = command(tmp_path, tokens, [made_tokens], "--tokenize", "none", "--force")
    found = score_translations(made, references, target_lang="de")
    assert found.bleu_tok_lc == wanted["score"]
    assert "case:lc" in found.bleu_tok_lc_signature
    assert "tok:moses-de-sacremoses-" in found.bleu_tok_lc_signature
    assert found.bleu_tok_lc != found.bleu


def test_perfect_and_wholly_wrong_translations() -> None:
    same = score_translations(GERMAN, GERMAN, target_lang="de")
    assert [same.bleu, same.chrf, same.bleu_tok_lc] == pytest.approx([100, 100, 100])
    assert same.length_ratio == 1
    none = score_translations(["xyz"] * 4, GERMAN, target_lang="de")
    assert none.bleu == 0
    assert score_translations([""] * 4, GERMAN, target_lang="de").length_ratio == 0


def test_length_ratio_counts_bleus_own_tokens_over_the_corpus() -> None:
    found = score_translations(["Ja, ja.", "Nein"], ["Ja.", "Nein, nein, nein!"], target_lang="de")
    assert found.length_ratio == 5 / 8  # Ja , ja . | Nein    over    Ja . | Nein , nein , nein !


@pytest.mark.parametrize(
    ("lines", "percent"),
    [
        (["a b c d"], 0),
        (["a b c"], 0),
        ([""], 0),
        (["a a a a a"], 50),  # two 4-grams, one of them new
        (["a b c d a b c d"], 20),  # abcd bcda cdab dabc abcd: the last occurred before
        (["a b c d", "a b c d"], 0),  # another hypothesis may say the same
        (["ja  ja ja\tja ja", "a b c d e f"], 20),  # one of five, over the corpus
    ],
)
def test_repetition_rate(lines: list[str], percent: float) -> None:
    assert repetition_rate(lines) == pytest.approx(percent)
    assert score_translations(lines, ["x"] * len(lines), target_lang="en").repetition_rate == pytest.approx(percent)


# ---- Two systems


@pytest.mark.parametrize(("seed", "samples"), [(12345, 1000), (7, 300)])
def test_the_p_value_is_that_of_the_command(tmp_path: Path, seed: int, samples: int) -> None:
    references, a, b = GERMAN * 3, GERMAN_OTHER * 3, GERMAN_MADE * 2 + GERMAN_OTHER
    options = ("-m", "bleu", "-l", "en-de", "--paired-bs", "--paired-bs-n", str(samples))
    rows = command(tmp_path, references, [a, b], *options, seed=seed)
    baseline, system = (row["BLEU"] for row in rows)
    found = paired_bootstrap(a, b, references, target_lang="de", samples=samples, seed=seed)
    assert found.p_value == system["p_value"]
    assert found.difference == pytest.approx(system["score"] - baseline["score"], abs=1e-9)
    assert f"|bs:{samples}|seed:{seed}|" in found.signature
    assert 0.05 < found.p_value < 1


def test_the_interval_holds_the_difference_and_turns_with_it() -> None:
    references, a, b = GERMAN * 3, GERMAN_OTHER * 3, GERMAN_MADE * 2 + GERMAN_OTHER
    forward = paired_bootstrap(a, b, references, target_lang="de", samples=400)
    backward = paired_bootstrap(b, a, references, target_lang="de", samples=400)
    assert forward.low < forward.difference < forward.high
    assert (backward.difference, backward.low, backward.high) == pytest.approx(
        (-forward.difference, -forward.high, -forward.low)
    )
    assert backward.p_value == forward.p_value


def test_a_sure_difference_and_none() -> None:
    many = GERMAN * 10
    sure = paired_bootstrap(GERMAN_OTHER * 10, many, many, target_lang="de", samples=200)
    assert sure.low > 0
    assert sure.p_value == 1 / 201
    same = paired_bootstrap(GERMAN_MADE, GERMAN_MADE, GERMAN, target_lang="de", samples=200)
    assert same[:3] == (0, 0, 0)


def test_the_seed_is_neither_taken_from_nor_left_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: Any = (GERMAN_OTHER, GERMAN_MADE, GERMAN)
    wanted = paired_bootstrap(*arguments, target_lang="de", samples=100, seed=3)
    monkeypatch.setenv("SACREBLEU_SEED", "99")
    assert paired_bootstrap(*arguments, target_lang="de", samples=100, seed=3) == wanted
    assert os.environ["SACREBLEU_SEED"] == "99"


# ---- Bad input


@pytest.mark.parametrize(
    ("made", "references", "lang", "said"),
    [
        ([], [], "de", "0 hypotheses and 0 references"),
        (["a", "b"], ["a"], "de", "2 hypotheses and 1 references"),
        ("ab", ["a", "b"], "de", "hypotheses is one string"),
        (["a"], [["a"]], "de", r"references\[0\] is of type list"),
        (["a", None], ["a", "b"], "de", r"hypotheses\[1\] is of type NoneType"),
        (["a"], [" "], "de", "without a word"),
        (["a"], ["a"], "", "target_lang"),
    ],
)
def test_bad_input_is_refused(made: Any, references: Any, lang: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        score_translations(made, references, target_lang=lang)


@pytest.mark.parametrize(
    ("a", "b", "references", "more", "said"),
    [
        ([], [], [], {}, "0 hypotheses_a"),
        (["a"], ["a", "b"], ["a"], {}, "1 hypotheses_a and 2 hypotheses_b and 1 references"),
        (["a"], ["a"], ["a"], {"samples": 0}, "samples 0"),
        (["a"], ["a"], ["a"], {"seed": 0}, "seed 0"),
    ],
)
def test_bad_pairs_are_refused(a: Any, b: Any, references: Any, more: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        paired_bootstrap(a, b, references, target_lang="de", **more)


def test_metrics_of_the_evaluate_library() -> None:
    with pytest.raises(InputError, match="bleu"):
        evaluate_metric("blue", target_lang="de")
    try:
        import evaluate  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="pip install evaluate"):
            evaluate_metric("bleu", target_lang="de")
        return
    wanted = score_translations(GERMAN_MADE, GERMAN, target_lang="de")
    for name in ("bleu", "chrf"):
        metric = evaluate_metric(name, target_lang="de")
        for made, reference in zip(GERMAN_MADE, GERMAN):
            metric.add(prediction=made, reference=reference)
        assert metric.compute() == {name: getattr(wanted, name), "signature": getattr(wanted, f"{name}_signature")}


def test_scores_of_a_tokenised_corpus_are_on_its_tokens_and_on_its_text() -> None:
    made = ["it &apos;s a big , red house .", "r &amp; d costs 3 % more ."]
    wanted = ["it &apos;s a big red house .", "r &amp; d costs 4 % more ."]
    score = score_translations(made, wanted, target_lang="en", tokenised=True)
    assert score.bleu_tok_lc == sacrebleu.corpus_bleu(made, [wanted], tokenize="none", force=True).score
    plain = [["it's a big, red house.", "r & d costs 3% more."], ["it's a big red house.", "r & d costs 4% more."]]
    assert detokenised(made, "en") == plain[0]
    assert score.bleu == sacrebleu.corpus_bleu(plain[0], [plain[1]]).score
    assert score.chrf == sacrebleu.corpus_chrf(plain[0], [plain[1]]).score
    assert "prep:moses-lc-detokenised" in score.bleu_signature
    assert "prep:moses-lc-detokenised" in score.chrf_signature
    assert "prep" not in score_translations(made, wanted, target_lang="en").bleu_signature
