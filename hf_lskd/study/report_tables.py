"""The report's tables as rows of text: what the template prints and escapes."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_lskd.study.report_eta import EtaSummary, Range, by_target
from hf_lskd.study.report_folder import Key, Setting, distinct
from hf_lskd.study.report_limits import gradient
from hf_lskd.study.report_numbers import (
    SMALL_GRADIENT,
    Rise,
    Scores,
    difference_of_rises,
    effective_gradients,
    mean_of,
    rise,
    rises,
)
from hf_lskd.study.report_words import number, setting_label, uncertain

COLUMNS = (  # metric, heading, digits
    ("top1", "Top-1, %", 1),
    ("bleu", "BLEU", 1),
    ("top5", "Top-5, %", 1),
    ("best_top1", "best, %", 1),
    ("train_top1", "train, %", 1),
    ("ece", "ECE, %", 1),
    ("nll", "NLL, nats", 2),
    ("best_nll", "best NLL", 2),
    ("train_nll", "train NLL", 2),
    ("token_accuracy", "tokens right, %", 1),
    ("agreement", "agreement", 2),
)


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; the first `labels` columns name the row and stand left; `prose` cells may wrap."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    note: str = ""
    prose: bool = False


def results(scores: Scores) -> Table:
    """Every cell with the mean of each metric over its seeds, teachers first."""
    settings = scores.settings()
    labelled = len(settings) > 1
    shown = [c for c in COLUMNS if any(c[0] in cell.metrics for cell in scores.folder.cells)]
    rows = []
    for key in ordered_keys(scores, settings):
        where = "teacher" if key.setting is None else setting_label(key.setting, settings) or "student"
        at = "–" if key.temperature is None else f"{key.temperature:g}"
        values = [uncertain(scores.mean(key, metric), digits) for metric, _, digits in shown]
        g = mean_of(effective_gradients(scores, key))
        rows.append([where, f"{key.alpha:g}", at, str(len(scores.cells[key])), *values, _gradient_cell(g)])
    measured = (
        "BLEU of whole translations; NLL and tokens right: the reference’s next token given those before it; best: the "
        "lowest on validation while training; train: on the training text; agreement: share of tokens that student and teacher "
        "take alike. "
        if scores.metric == "bleu"
        else "Top-1, ECE and NLL after the last epoch; best: the highest epoch on the same data; train: on the training images. "
    )
    note = f"{measured}g: the gradient’s scale that the cell was trained with (its loss’s own factor included); † below 0.3."
    head = ["cell" if labelled else "role", "α", "T", "seeds", *(c[1] for c in shown), "g"]
    kinds = {e.kind for k in scores.cells if (e := scores.mean(k))}
    words = scores.words
    over = f"over {words.items} for {words.metric}" if kinds == {"examples"} else "over seeds"
    over += f" (over {words.items} with fewer than 3)" if kinds == {"seeds", "examples"} else ""
    caption = "All cells: means" if kinds == {"none"} else f"All cells: mean and 95 % interval {over}"
    return Table(caption, head, rows, labels=3, note=note)


def changes(scores: Scores, student: str) -> Table | None:
    """What raising T from its lowest changes, for each setting and α, and how much more it changes with smoothing."""
    settings = scores.settings(student)
    temperatures = distinct(t for s in settings for t in scores.temperatures(s))
    if len(temperatures) < 2:
        return None
    low, *higher = sorted(temperatures)
    rows = []
    for setting in settings:
        label = setting_label(setting, settings)
        by_alpha = {a: {t: rise(scores, setting, a, low, t) for t in higher} for a in scores.alphas(setting)}
        for alpha, found in by_alpha.items():
            cells = [uncertain(r.change, sign=True) if (r := found[t]) else "–" for t in higher]
            rows.append([_join(label, f"α = {alpha:g}"), *cells])
        for alpha in [a for a in by_alpha if a and 0.0 in by_alpha]:
            cells = [_difference(scores, by_alpha[alpha][t], by_alpha[0.0][t]) for t in higher]
            rows.append([_join(label, f"α = {alpha:g} minus α = 0"), *cells])
    head = ["", *(f"to T = {t:g}" for t in higher)]
    note = "Differences are taken seed by seed." if max(len(v) for v in scores.cells.values()) > 1 else ""
    return Table(f"Change of {scores.words.metric} from T = {low:g}, in points", head, rows, note=note)


def gradients(scores: Scores, student: str) -> Table | None:
    """g and the targets' entropy for each α and T, and the loss's own factor where it is not 1."""
    settings = scores.settings(student)
    temperatures = sorted({t for s in settings for t in scores.temperatures(s)})
    plain = next((s for s in settings if s.kd_loss_scale != "equalised"), settings[0])
    scaled = [s for s in settings if s.kd_loss_scale != 1.0]
    wanted = [("g", plain, "target_gradient")]
    wanted += [(_join("factor on the loss", setting_label(s, settings)), s, "kd_loss_scale_value") for s in scaled]
    wanted += [("target entropy, nats", plain, "target_entropy")]
    rows = []
    for label, setting, metric in wanted:
        for alpha in scores.alphas(setting):
            values = [mean_of(scores.values(Key(setting, alpha, t), metric)) for t in temperatures]
            if any(v is not None for v in values):
                cells = [_gradient_cell(v) if metric == "target_gradient" else number(v, 2) for v in values]
                rows.append([_join(label, f"α = {alpha:g}"), *cells])
    head = ["", *(f"T = {t:g}" for t in temperatures)]
    note = f"Mean over seeds, from the teacher’s logits on the {scores.words.train}. † g below 0.3."
    return Table("Gradient scale and softness of the targets", head, rows, note=note) if rows else None


def geometry(scores: Scores) -> Table | None:
    """How tight each teacher's classes are and, where there are similar classes, how far apart it holds them."""
    notes = {
        "tightness": "Tightness: spread inside a class over the mean distance between centroids (smaller: tighter).",
        "separation": "Separation: distance to similar classes over distance to similar and dissimilar ones (larger: further apart).",
    }
    known = [m for m in notes if any(m in c.metrics for c in scores.folder.teachers)]
    rows = []
    for alpha in scores.alphas(None):
        key = Key(None, alpha, None)
        rows.append(
            [f"α = {alpha:g}", uncertain(scores.mean(key)), *(uncertain(scores.mean(key, m), 3) for m in known)]
        )
    head = ["teacher", scores.words.metric, *known]
    note = " ".join(notes[m] for m in known)
    return Table(f"The teachers’ own geometry ({scores.words.train})", head, rows, note=note) if known else None


def eta_summary(found: Sequence[EtaSummary]) -> Table:
    """S1, S2, the systematic share and its chance level of one setting: a row for each split, α and T."""
    rows = [
        [
            f"α = {one.alpha:g}, T = {one.low:g} → {one.high:g}",
            one.split,
            _range(one.similar, 2, sign=True),
            _range(one.dissimilar, 2, sign=True),
            _range(one.systematic, 0, " %"),
            "–" if one.chance is None else f"{number(one.chance, 0)} %",
        ]
        for one in found
    ]
    first = found[0]
    over = f"{first.targets} targets" + (
        f" and {first.seeds} seeds, resampled together" if first.seeds > 1 else ", one seed"
    )
    note = (
        f"Brackets: 95 % bootstrap interval over {over}. Chance: the same share when two seeds of one cell are compared, "
        f"averaged over T1 and T2{_pairs(first)}."
    )
    head = ["", "split", "η S1 (similar), %", "η S2 (dissimilar), %", "systematic", "chance"]
    return Table("Diffusion index η, mean over targets", head, rows, labels=2, note=note)


def eta_targets(found: Sequence[EtaSummary], limit: int) -> Table:
    """Every target of one setting and split, averaged over seeds; at most `limit` of them."""
    columns = [(one, {t.target: t for t in by_target(one)}) for one in found]
    targets = distinct(name for _, table in columns for name in table)
    head = ["target"]
    for one in found:
        head += [f"α = {one.alpha:g}, {one.low:g} → {one.high:g}: S1", "S2", "syst."]
    rows = []
    for target in targets[:limit]:
        row = [target]
        for _, table in columns:
            t = table.get(target)
            row += (
                [number(t.similar, 1, sign=True), number(t.dissimilar, 1, sign=True), _share(t.systematic)]
                if t
                else ["–"] * 3
            )
        rows.append(row)
    cut = f" The first {limit} of {len(targets)} targets; all are in eta.csv." if len(targets) > limit else ""
    return Table(f"η of each target, {found[0].split}", head, rows, note=f"In percent, mean over seeds.{cut}")


def ordered_keys(scores: Scores, settings: Sequence[Setting]) -> list[Key]:
    """The finished cells as tables list them: teachers first, then by setting, α and T."""
    order: list[Setting | None] = [None, *settings]
    return sorted(scores.cells, key=lambda k: (order.index(k.setting), k.alpha, k.temperature or 0.0))


def _difference(scores: Scores, first: Rise | None, second: Rise | None) -> str:
    return uncertain(difference_of_rises(scores, first, second) if first and second else None, sign=True)


def smoothing_effects(scores: Scores, setting: Setting) -> list[tuple[Rise, str]]:
    """How much more each smoothed α changes from lowest to highest T than α = 0."""
    found = rises(scores, setting)
    plain = next((r for r in found if not r.alpha), None)
    return [(r, _difference(scores, r, plain)) for r in found if r.alpha and plain]


def _gradient_cell(g: float | None) -> str:
    return "–" if g is None else gradient(g) + (" †" if g < SMALL_GRADIENT else "")


def _range(value: Range, digits: int, unit: str = "", *, sign: bool = False) -> str:
    text = number(value.value, digits, sign=sign) + unit
    if value.low is None or value.high is None:
        return text
    return f"{text} ({number(value.low, digits, sign=sign)} to {number(value.high, digits, sign=sign)})"


def _pairs(one: EtaSummary) -> str:
    return f" ({one.chance_pairs} comparisons)" if one.chance_pairs else "; it needs two seeds"


def _share(share: float) -> str:
    return "yes" if share == 1 else "no" if share == 0 else f"{100 * share:.0f} %"


def _join(*parts: str) -> str:
    return ", ".join(p for p in parts if p)
