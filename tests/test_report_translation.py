"""The report of translation studies: BLEU's intervals against sacrebleu, paired tests, what is said of models that learnt nothing."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from hf_lskd.errors import InputError
from hf_lskd.metrics import paired_bootstrap
from hf_lskd.study.report import write_report
from hf_lskd.study.report_bleu import RESAMPLES, SEED
from hf_lskd.study.report_folder import Key, Setting, read_study
from hf_lskd.study.report_numbers import Scores, floor
from hf_lskd.study.report_translation import paired_table, readings, score_table
from hf_lskd.study.report_words import answer_lines
from hf_lskd.study.summary import accuracy_table

from .report.page import Page, page_of
from .study_folder import Plan, held_out, make_study

TRANSLATION: Mapping[str, Any] = {
    "task": "translation",
    "optim": "adamw_torch",
    "eta": False,
    "projections": False,
    "examples": 50,
    "class_names": [f"token{i}" for i in range(20)],
}
STUDENT = Setting("student")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed of a translation study, T = 1 and 64; read only."""
    path = tmp_path_factory.mktemp("translation")
    return make_study(path, seeds=1, temperatures=(1.0, 64.0), **TRANSLATION)


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return page_of(study)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose students get no word right."""
    wrong = {(a, t): 1.0 for a in (0.0, 0.1) for t in (1.0, 64.0)}
    path = tmp_path_factory.mktemp("nothing")
    return make_study(path, seeds=1, temperatures=(1.0, 64.0), wrong=wrong, **TRANSLATION)


def translations(study: Path, name: str) -> tuple[list[str], list[str]]:
    """(what the cell made, references)."""
    text = (study / "cells" / name / "translations.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [row["translation"] for row in rows], [row["target"] for row in rows]


def resampled(study: Path, name: str) -> np.ndarray:
    """BLEU of each drawn corpus by sacrebleu from its text, slowly."""
    made, wanted = translations(study, name)
    draws = np.random.default_rng(SEED).choice(len(made), size=(RESAMPLES, len(made)), replace=True)
    bleu = BLEU()
    return np.array(
        [bleu.corpus_score([made[i] for i in draw], [[wanted[i] for i in draw]]).score for draw in draws[:200]]
    )


# ---- BLEU and its intervals


def test_a_change_of_bleu_has_the_paired_interval_over_sentences(study: Path) -> None:
    a, b = "student-a0.1-T1-s0", "student-a0.1-T64-s0"
    scores = Scores(read_study(study))
    change = scores.contrast([(1.0, Key(STUDENT, 0.1, 64.0)), (-1.0, Key(STUDENT, 0.1, 1.0))])
    (made_a, wanted), (made_b, _) = translations(study, a), translations(study, b)
    expected = paired_bootstrap(made_a, made_b, wanted, target_lang="de", samples=RESAMPLES, seed=SEED)
    assert change is not None
    assert change.kind == "examples"
    assert change.value == pytest.approx(expected.difference, abs=1e-4)
    assert (change.low, change.high) == pytest.approx((expected.low, expected.high), abs=0.2)


def test_each_resample_is_sacrebleus_own_score_of_those_sentences(study: Path) -> None:
    found = Scores(read_study(study)).bleu.of("student-a0-T64-s0")
    assert found is not None
    assert found[1][:200] == pytest.approx(resampled(study, "student-a0-T64-s0"), abs=1e-3)


def test_cells_judged_on_other_sentences_are_never_paired(tmp_path: Path) -> None:
    folder = make_study(tmp_path, seeds=1, temperatures=(1.0, 64.0), **TRANSLATION)
    path = folder / "cells" / "student-a0.1-T64-s0" / "translations.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n", encoding="utf-8")
    scores = Scores(read_study(folder))
    change = scores.contrast([(1.0, Key(STUDENT, 0.1, 64.0)), (-1.0, Key(STUDENT, 0.1, 1.0))])
    assert change is not None
    assert change.kind == "none"
    table = paired_table(scores)
    assert table is not None
    assert [row[0] for row in table.rows] == ["α = 0: T = 1 → 64", "T = 1: α = 0 → 0.1"]


def test_three_seeds_have_intervals_over_seeds(tmp_path: Path) -> None:
    text = page_of(make_study(tmp_path, seeds=3, temperatures=(1.0, 64.0), **TRANSLATION)).text
    assert re.search(r"With α = 0\.1, raising T from 1 to 64 costs \d+\.\d ± \d+\.\d BLEU points", text)
    assert "over 3 seeds; differences are taken seed by seed" in text


def test_the_page_speaks_of_bleu_and_sentences(page: Page, study: Path) -> None:
    start = page.text.split("BLEU over temperature")[0]
    assert re.search(
        r"One seed: with α = 0\.1, raising T from 1 to 64 costs \d+\.\d BLEU points \(\d+\.\d to \d+\.\d\)", start
    )
    assert re.search(r"Best: α = 0, T = 1 \(\d+\.\d BLEU, \d+\.\d to \d+\.\d\)", start)
    assert "one seed · bootstrap over held-out sentences" in start
    assert "(test split, 95 %)" in start
    for word in ("image", "Top-1", "top-1", "test examples", "validation examples"):
        assert word not in page.text
    assert any("BLEU points" in line for line in answer_lines(study))


def test_without_translations_there_is_no_interval(tmp_path: Path) -> None:
    text = page_of(make_study(tmp_path, seeds=1, translations=False, temperatures=(1.0, 64.0), **TRANSLATION)).text
    assert "no stored translations to resample" in text
    assert "Paired bootstrap" not in text
    assert "to read" not in text


def test_a_damaged_line_of_translations_is_named(tmp_path: Path) -> None:
    folder = make_study(tmp_path, seeds=1, temperatures=(1.0, 64.0), **TRANSLATION)
    path = folder / "cells" / "student-a0-T1-s0" / "translations.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"source": "half\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"student-a0-T1-s0/translations\.jsonl:61"):
        write_report(folder)


def test_the_terminal_prints_bleu(study: Path) -> None:
    records = [json.loads(p.read_text()) for p in sorted(study.glob("cells/*/record.json"))]
    head, first, *_ = accuracy_table(records).splitlines()
    assert head.split()[:3] == ["BLEU", "α", "teacher"]
    by_name = {r["name"]: r["metrics"]["bleu"] for r in records}
    names = ("teacher-a0-s0", "student-a0-T1-s0", "student-a0-T64-s0")
    assert first.split() == ["student", "0", *(f"{by_name[n]:.1f}" for n in names)]


# ---- The section


def test_score_table_has_every_cell_and_the_copy(study: Path) -> None:
    table = score_table(Scores(read_study(study)))
    assert table.head[3:6] == ["BLEU", "chrF", "BLEU, tokenised and lower-cased"]
    assert len(table.rows) == 2 + 4 + 1
    made, wanted = translations(study, "student-a0-T64-s0")
    row = next(r for r in table.rows if r[:3] == ["student", "0", "64"])
    assert row[3].startswith(f"{BLEU().corpus_score(made, [wanted]).score:.1f} (")
    assert row[4] == f"{CHRF().corpus_score(made, [wanted]).score:.1f}"
    sources = [source for source, _ in held_out(Plan())]
    assert table.rows[-1][0] == "copy of the source"
    assert table.rows[-1][3] == f"{BLEU().corpus_score(sources, [wanted]).score:.1f}"


def test_signatures_are_printed(page: Page) -> None:
    assert "BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in page.text
    assert "chrF: nrefs:1|" in page.text
    assert "BLEU, tokenised and lower-cased: nrefs:1|case:lc|" in page.text
    assert "60 held-out pairs, test split (so is what tables call validation), en → de, beam search of 4." in page.text


def test_paired_table_compares_temperatures_and_alphas(study: Path) -> None:
    table = paired_table(Scores(read_study(study)))
    assert table is not None
    assert [row[0] for row in table.rows] == [
        "α = 0: T = 1 → 64",
        "α = 0.1: T = 1 → 64",
        "T = 1: α = 0 → 0.1",
        "T = 64: α = 0 → 0.1",
    ]
    made = {n: translations(study, f"student-a{n}-T64-s0") for n in ("0", "0.1")}
    expected = paired_bootstrap(made["0"][0], made["0.1"][0], made["0"][1], target_lang="de")
    assert table.rows[-1][1:] == [
        f"{expected.difference:+.1f}".replace("-", "−"),
        f"{expected.low:+.1f} to {expected.high:+.1f}".replace("-", "−"),
        f"{expected.p_value:.3f}",
    ]


def test_equal_outputs_have_no_p_value(nothing: Path) -> None:
    table = paired_table(Scores(read_study(nothing)))
    assert table is not None
    assert {row[3] for row in table.rows} == {"no difference"}


def test_sentences_to_read_are_the_worst_and_the_same_drawn_ones(study: Path) -> None:
    best, furthest = readings(Scores(read_study(study)))
    assert "α = 0, T = 1" in best.title
    assert "α = 0.1, T = 64" in furthest.title
    made, wanted = translations(study, "student-a0.1-T64-s0")
    chrf = [CHRF().sentence_score(m, [w]).score for m, w in zip(made, wanted, strict=True)]
    places = sorted(range(len(made)), key=lambda i: chrf[i])[:10]
    assert [s.place - 1 for s in furthest.worst] == places
    assert [s.translation for s in furthest.worst] == [made[i] for i in places]
    assert [s.place for s in best.drawn] == [s.place for s in furthest.drawn]
    assert len({s.place for s in best.drawn}) == 10


def test_sentences_are_text_and_never_markup(tmp_path: Path) -> None:
    words = ("<script>alert(1)</script>", "a=b", '"><img', "&amp;", "\u2028", "שלום")
    folder = make_study(tmp_path, seeds=1, temperatures=(1.0, 64.0), words=words, **TRANSLATION)
    page = page_of(folder)
    assert page.stack == []
    assert not re.search("<script|<img", page.source)
    assert words[0] in page.text
    assert "&amp;amp;" in page.source


def test_the_same_translation_study_gives_the_same_bytes(study: Path, page: Page) -> None:
    assert write_report(study).read_text(encoding="utf-8") == page.source
    assert page.stack == []
    assert len(page.source.encode()) < 500_000


# ---- What it does not show


def test_a_small_study_says_what_it_shows(page: Page) -> None:
    shown = page.text.split("What this study does not show", 2)[-1]
    assert "This is a small study (60 held-out pairs): it shows that the machinery works" in shown
    assert "at the high T the students have not learnt what they were trained on" in shown
    assert "On the training text itself NLL at T = 1 and T = 64 is" in page.text.split("BLEU over temperature")[0]
    assert "One corpus in one direction (en → de)" in shown


def test_under_adam_a_small_gradient_is_no_learning_rate(page: Page) -> None:
    assert "The optimizer is adamw_torch, which divides the loss’s scale out again" in page.text
    assert "smaller learning rate" not in page.text
    assert "Here g is no learning rate: the optimizer, adamw_torch, divides" in page.text


def test_what_equalising_changed_under_adam_is_said(tmp_path: Path) -> None:
    scales: Any = (1.0, "equalised")
    text = page_of(
        make_study(tmp_path, seeds=1, temperatures=(1.0, 64.0), loss_scales=scales, pairs=40, **TRANSLATION)
    ).text
    assert re.search(r"Measured here: equalising it changes what T = 1 → 64 does by [−+]?\d+\.\d \(.*?\) without", text)


def test_models_below_the_copy_baseline_are_named_and_nothing_is_called_free(nothing: Path) -> None:
    scores = Scores(read_study(nothing))
    lowest = floor(scores)
    assert lowest is not None
    assert lowest.value == 1.0
    text = page_of(nothing).text
    assert "One seed: the students learnt nothing to speak of: the highest has 0.0 BLEU, below 1 BLEU (copying" in text
    assert "costs nothing (" not in text
    assert "Best:" not in text
    assert "4 of 6 models (α and T) are below 1 BLEU" in text
    assert "(copying the source has 0." in text.split("What this study does not show")[-1]
    assert "and every student. Differences" in text or ": every student. Differences" in text
    assert "learnt nothing" in answer_lines(nothing)[0]


def test_copying_sets_the_floor_where_it_scores(nothing: Path, tmp_path: Path) -> None:
    """A student better than nothing, but worse than giving its input back."""
    folder = make_study(tmp_path, seeds=1, temperatures=(1.0, 64.0), **TRANSLATION)
    for path in folder.glob("cells/*/record.json"):
        record = json.loads(path.read_text())
        record["translation"]["copy"]["bleu"] = 60.0
        path.write_text(json.dumps(record))
    scores = Scores(read_study(folder))
    assert scores.values(Key(STUDENT, 0.1, 64.0))[0] < 60 < scores.values(Key(STUDENT, 0.0, 1.0))[0]
    text = page_of(folder).text
    assert "Below the 60.0 BLEU of copying the source: the students of α = 0, T = 64; α = 0.1, T = 64." in text
    assert "raising T from 1 to 64 costs" in text


def test_a_study_where_every_student_failed_has_a_page(tmp_path: Path) -> None:
    names = [f"student-a{a}-T{t}-s0" for a in ("0", "0.1") for t in (1, 64)]
    folder = make_study(tmp_path, seeds=1, temperatures=(1.0, 64.0), failed=names, **TRANSLATION)
    text = page_of(folder).text
    assert "No student of this study is finished, so there is no answer." in text
    assert "copy of the source" in text
