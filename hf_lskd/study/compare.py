"""A study beside the paper's tables: each cell's number, the paper's claims on the order of cells, and `compare.csv`.

A student's `paper:` says which table it belongs to. Where the paper prints BLEU, over Moses-tokenised lower-cased text, ours is
`bleu_tok_lc`. Intervals are the report's own, Student t over at least three seeds; with fewer there is none.

compare.csv has one row a cell and metric (`kind` cell) and one a claim (`kind` claim), numbers to eight digits:

| column | of a cell | of a claim |
|---|---|---|
| student, paper | the student's name, and its pair | the same |
| role, label_smoothing, temperature | the cell; no temperature for a teacher | student, 0.1, the T that the row is about |
| kd_weight … kd_top_k | the student's loss, as in results.csv | the same |
| as_published | whether that loss is the paper's | the same |
| metric, measured_as | the paper's metric, and our column for it | the same |
| claim | empty | best_at_1 or falls_more |
| paper_value | the published number | the paper's own difference |
| ours, low, high, seeds | mean over seeds, its 95 % interval or nothing, how many | our difference, paired by seed |
| difference | ours − paper_value | empty |
| verdict | agrees, differs, cannot tell, no published number | holds, does not hold, cannot tell |
| paper_temperature, paper_verdict | empty | what the paper's own numbers say, by their order alone |
| ours_best_epoch | mean of the best epoch's top-1, beside top1 | empty |
| target_gradient | g of the study's teacher at this T, mean over seeds; also of a cell of the paper's whose teacher alone is
finished (seeds 0) | empty |

The two claims are worded in `compare_claims`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_lskd.errors import InputError
from hf_lskd.paper import ROUNDING, PaperPair, half_a_digit, our_column, pair_names, paper_pair
from hf_lskd.study.compare_claims import SMOOTHED, Claim, ordering
from hf_lskd.study.report_folder import Key, Setting, StudyFolder, read_study
from hf_lskd.study.report_numbers import Estimate, Scores, mean_of
from hf_lskd.study.tables import shown, write_csv

COMPARE = "compare.csv"
SETTING = ("kd_weight", "kd_loss_scale", "scale_student", "student_label_smoothing", "kd_top_k")
FIELDS = (
    "kind", "student", "paper", "role", "label_smoothing", "temperature", *SETTING, "as_published", "metric",
    "measured_as", "claim", "paper_value", "ours", "difference", "low", "high", "seeds", "verdict",
    "paper_temperature", "paper_verdict", "ours_best_epoch", "target_gradient",
)  # fmt: skip

Verdict = Literal["agrees", "differs", "cannot tell", "no published number"]


@dataclass(frozen=True)
class CellRow:
    """One cell and metric: the paper's number and ours, with g of the study's teacher where it is known."""

    key: Key
    metric: str
    paper: float | None
    ours: Estimate | None
    best_epoch: float | None
    gradient: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.paper is None or self.ours is None else round(self.ours.value - self.paper, 9)

    @property
    def verdict(self) -> Verdict:
        """What interval and printed digits allow to say."""
        return verdict(self.paper, self.ours)


@dataclass(frozen=True)
class Comparison:
    """One student beside its table; `missing` are cells of the table, (α, T), that the study has not finished, and `untrained`
    those of them whose teacher is finished, so that g at least is known."""

    student: str
    pair: PaperPair
    rows: tuple[CellRow, ...]
    claims: tuple[Claim, ...]
    missing: tuple[tuple[float, float | None], ...]
    untrained: tuple[CellRow, ...] = ()


def write_comparison(folder: Path) -> tuple[Scores, list[Comparison]]:
    """Compare a study's folder with the paper's tables and write `compare.csv` into it.

    Raises InputError for a folder that is no study, one whose recipe names no table, and one without a finished cell.
    """
    study = read_study(Path(folder))
    if not paper_students(study):
        raise InputError(
            f"no student of {folder} says which of the paper's tables it belongs to",
            f"`paper: PAIR` under a student of its recipe, PAIR one of {', '.join(pair_names())}",
            "Add it and run `hf-lskd study` again: finished cells are kept.",
        )
    scores = Scores(study)
    found = comparisons(scores)
    if not any(one.rows for one in found):
        raise InputError(
            f"{folder} has no finished cell to compare",
            "a study with finished cells of a student with `paper:`, or of its teachers",
            "Run `hf-lskd study` first.",
        )
    write_csv(study.path / COMPARE, FIELDS, (row for one in found for row in csv_rows(one)))
    return scores, found


def keep_comparison(folder: Path) -> None:
    """Write `compare.csv` beside a study's other tables where a student names a table of the paper's; remove an old one else."""
    study = read_study(folder)
    if paper_students(study) and (study.students or study.teachers):
        write_comparison(folder)
    else:
        (folder / COMPARE).unlink(missing_ok=True)


def paper_students(study: StudyFolder) -> dict[str, PaperPair]:
    """The students with a table of the paper, by name. Raises InputError for a pair that does not exist."""
    students = [s for s in study.recipe.get("students") or [] if isinstance(s, Mapping)]
    return {str(s.get("name", "student")): paper_pair(str(s["paper"])) for s in students if s.get("paper")}


def comparisons(scores: Scores) -> list[Comparison]:
    """Each student that has a table beside it; empty for a study without such."""
    found = []
    for student, pair in paper_students(scores.folder).items():
        settings = scores.settings(student)
        keys = [Key(None, alpha, None) for alpha in scores.alphas(None)]
        keys += [Key(s, a, t) for s in settings for a in scores.alphas(s) for t in scores.temperatures(s, a)]
        rows = tuple(cell_row(scores, pair, key, metric) for key in keys for metric in pair.metrics)
        claims = tuple(claim for setting in settings for claim in ordering(scores, pair, setting))
        finished = {(key.alpha, key.temperature) for key in keys}
        missing = tuple(cell for cell in pair.cells if cell not in finished)
        found.append(Comparison(student, pair, rows, claims, missing, untrained(scores, student, pair, missing)))
    return found


def untrained(
    scores: Scores, student: str, pair: PaperPair, missing: Sequence[tuple[float, float | None]]
) -> tuple[CellRow, ...]:
    """Rows of the paper's cells that no student of ours was trained for, where g of their teacher's targets was measured."""
    setting = Setting(student, kd_top_k=pair.top_k)
    rows = []
    for alpha, temperature in missing:
        teachers = scores.cells.get(Key(None, alpha, None), {})
        g = {seed: scores.folder.gradient(cell.name, temperature, pair.top_k) for seed, cell in teachers.items()}
        mean = mean_of(
            {seed: float(shown(value)) for seed, value in g.items() if value is not None}
        )  # as results.csv has them
        key = Key(setting, alpha, temperature)
        rows += [
            CellRow(key, m, pair.value(alpha, temperature, m), None, None, mean)
            for m in pair.metrics
            if mean is not None
        ]
    return tuple(rows)


def cell_row(scores: Scores, pair: PaperPair, key: Key, metric: str) -> CellRow:
    """One cell beside the paper's number."""
    best = mean_of(scores.values(key, "best_top1")) if metric == "top1" else None
    return CellRow(
        key,
        metric,
        pair.value(key.alpha, key.temperature, metric),
        scores.over_seeds([(1.0, key)], our_column(metric)),
        best,
        mean_of(scores.values(key, "target_gradient")),
    )


def verdict(paper: float | None, ours: Estimate | None) -> Verdict:
    """Whether a published number agrees with ours: printed alike, or, as printed, inside our 95 % interval."""
    if paper is None:
        return "no published number"
    if ours is None:
        return "cannot tell"
    alike = half_a_digit() + ROUNDING
    if abs(ours.value - paper) <= alike:
        return "agrees"
    if ours.low is None or ours.high is None:
        return "cannot tell"
    return "agrees" if ours.low - alike <= paper <= ours.high + alike else "differs"


def as_published(setting: Setting, pair: PaperPair) -> bool:
    """Whether a student's loss is the paper's. Translation has a hard loss beside the soft one, by a weight that is free here."""
    if pair.top_k is None:
        return setting.plain
    plain = setting.kd_loss_scale == 1.0 and setting.scale_student
    return plain and setting.kd_top_k == pair.top_k and setting.kd_weight < 1


# ---- compare.csv


def csv_rows(found: Comparison) -> Iterable[dict[str, Any]]:
    """The rows of one student: its teachers and cells, then its claims."""
    for row in (*found.rows, *found.untrained):
        yield {
            **_place(found, row.key.setting, "cell", row.metric),
            "label_smoothing": row.key.alpha,
            "temperature": row.key.temperature,
            "paper_value": row.paper,
            "difference": row.difference,
            **_estimate(row.ours),
            "verdict": row.verdict,
            "ours_best_epoch": row.best_epoch,
            "target_gradient": row.gradient,
        }
    for claim in found.claims:
        yield {
            **_place(found, claim.setting, "claim", found.pair.main),
            "label_smoothing": SMOOTHED,
            "temperature": claim.at,
            "claim": claim.name,
            "paper_value": claim.paper,
            **_estimate(claim.ours),
            "verdict": claim.judgement,
            "paper_temperature": claim.paper_at,
            "paper_verdict": claim.paper_says,
        }


def _place(found: Comparison, setting: Setting | None, kind: str, metric: str) -> dict[str, Any]:
    loss = {} if setting is None else {key: getattr(setting, key) for key in SETTING}
    own = {} if setting is None else {"as_published": as_published(setting, found.pair)}
    role = "teacher" if setting is None else "student"
    where = {"kind": kind, "student": found.student, "paper": found.pair.name, "role": role}
    return {**where, **loss, **own, "metric": metric, "measured_as": our_column(metric)}


def _estimate(ours: Estimate | None) -> dict[str, Any]:
    if ours is None:
        return {"seeds": 0}
    return {"ours": ours.value, "low": ours.low, "high": ours.high, "seeds": ours.seeds}
