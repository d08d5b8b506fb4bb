"""The report's sentences, each made from the numbers: the answer, what the gradient's scale means, what is not shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_lskd.card_tables import number
from hf_lskd.study.report_folder import Key, Setting, read_study
from hf_lskd.study.report_numbers import (
    Best,
    Control,
    Estimate,
    Rise,
    Scores,
    best_cell,
    floor,
    learnt_nothing,
    mean_of,
    rises,
)
from hf_lskd.study.report_wording import Wording


@dataclass(frozen=True)
class Answer:
    """Two sentences on one student: what raising T does, and which cell is best.

    `rivals` names the cells that the best cannot be told from where they are too many for the sentence; `basis` says
    what the intervals are, `badge` in short; `kinds` are those of the intervals.
    """

    student: str
    first: str
    second: str
    rivals: str
    basis: str
    badge: str
    kinds: frozenset[str] = frozenset()


def uncertain(estimate: Estimate | None, digits: int = 1, *, sign: bool = False) -> str:
    """ "7.5 ± 0.8" over seeds, "7.5 (6.2 to 8.8)" over examples, the value alone without an interval."""
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return number(estimate.value, digits, sign=sign)
    half = (estimate.high - estimate.low) / 2
    digits += 0.05 * 10**-digits <= half < 0.5 * 10**-digits  # one digit more rather than "± 0.0"
    value = number(estimate.value, digits, sign=sign)
    if estimate.kind == "seeds":
        return f"{value} ± {number(half, digits)}"
    return f"{value} ({number(estimate.low, digits, sign=sign)} to {number(estimate.high, digits, sign=sign)})"


def listed(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def smoothing(alpha: float) -> str:
    """How a sentence names the teacher's α."""
    return f"with α = {alpha:g}" if alpha else "without smoothing"


def setting_label(setting: Setting, among: Sequence[Setting]) -> str:
    """What tells this setting from the others of the study, in words; empty where it is the only one."""
    parts = []
    if len({s.student for s in among}) > 1:
        parts.append(setting.student)
    if len({s.kd_loss_scale for s in among}) > 1:
        scale = setting.kd_loss_scale
        plain = "T² alone" if setting.plain else ""
        parts.append(scale if isinstance(scale, str) else plain or f"soft loss × {scale:g}")
    if len({s.kd_weight for s in among}) > 1:
        parts.append(f"KD weight {setting.kd_weight:g}")
    if len({s.scale_student for s in among}) > 1:
        parts.append("student's logits " + ("divided by T" if setting.scale_student else "not divided by T"))
    if len({s.student_label_smoothing for s in among}) > 1:
        parts.append(f"student's own α {setting.student_label_smoothing:g}")
    if len({s.kd_top_k for s in among}) > 1:
        parts.append(f"top {setting.kd_top_k}" if setting.kd_top_k else "all classes")
    return ", ".join(parts)


def key_label(key: Key, among: Sequence[Setting]) -> str:
    """ "α = 0, T = 2", with what tells its setting from the others."""
    extra = setting_label(key.setting, among) if key.setting else ""
    return f"α = {key.alpha:g}, T = {key.temperature:g}" + (f", {extra}" if extra else "")


def answer(scores: Scores, student: str) -> Answer:
    """The two sentences that the page begins with, for one student."""
    settings = scores.settings(student)
    found = rises(scores, settings[0])
    best = best_cell(scores, student)
    estimates = [r.change for r in found] + ([best.score] if best else [])
    basis, badge = _basis(estimates, scores.words)
    most = max((e.seeds for e in estimates), default=0)
    lead = f"{_seeds(most).capitalize()}: " if most in (1, 2) else ""
    if nothing := _nothing_sentence(scores, student):
        first, second, rivals, basis, badge = nothing, "", "", "", _seeds(most)
    else:
        first = _rise_sentence(scores, found, settings)
        second, rivals = _best_sentence(best, settings, scores.words)
    lowered = first[0].lower() + first[1:] if lead else first
    return Answer(student, lead + lowered, second, rivals, basis, badge, frozenset(e.kind for e in estimates))


def _nothing_sentence(scores: Scores, student: str) -> str:
    """That no cell of the student is above the floor, so that no difference between cells means anything; else empty."""
    keys = [key for key in scores.cells if key.setting and key.setting.student == student and scores.values(key)]
    lowest = floor(scores)
    if lowest is None or not keys or not all(learnt_nothing(scores, key) for key in keys):
        return ""
    highest = max(mean_of(scores.values(key)) or 0.0 for key in keys)
    return (
        f"The students learnt nothing to speak of: the highest has {number(highest)}{scores.words.unit}, below {lowest.words}. "
        "So this study does not say what raising T costs."
    )


def answer_lines(folder: Path) -> list[str]:
    """The answer of a study's folder as lines for a terminal: for each student its sentences, then their basis.

    Raises InputError as `read_study` does.
    """
    scores = Scores(read_study(Path(folder)))
    lines: list[str] = []
    for student in scores.student_names():
        found = answer(scores, student)
        lead = f"{student}: " if len(scores.student_names()) > 1 else ""
        lines += [lead + " ".join(t for t in (found.first, found.second, found.rivals) if t), found.basis]
    return [line for line in lines if line]


def _basis(estimates: Sequence[Estimate], words: Wording) -> tuple[str, str]:
    """(what the intervals are, the same in short)."""
    kinds = {e.kind for e in estimates}
    few, most = (pick((e.seeds for e in estimates), default=0) for pick in (min, max))
    over_seeds = f"± is a 95 % interval (Student t) over {_seeds(most)}; differences are taken seed by seed."
    bootstrap = (
        f"a paired bootstrap over the {words.items} ({words.split}, 95 %): they say how much hangs on the choice of "
        f"{words.resampled}, and nothing about another seed."
    )
    if kinds <= {"seeds"}:
        return over_seeds, f"{_seeds(most)} · 95 % t interval"
    if kinds == {"seeds", "examples"}:
        text = f"{over_seeds} Where cells share only {_seeds(few)}, the intervals in brackets are {bootstrap}"
        return text, f"{few} to {most} seeds · in brackets: bootstrap over {words.items}"
    lead = f"{_seeds(few).capitalize()} only"
    if "examples" in kinds:
        text = f"{lead}. The intervals in brackets are {bootstrap} With at least 3 seeds this page gives intervals over seeds."
        return text, f"{_seeds(few)} · bootstrap over {words.items}"
    text = (
        f"{lead} and no {words.kept} to resample, so there is no interval. With at least 3 seeds this page gives one."
    )
    return text, f"{_seeds(few)} · no interval"


def _seeds(count: int) -> str:
    return {1: "one seed", 2: "two seeds"}.get(count, f"{count} seeds")


def _rise_sentence(scores: Scores, found: Sequence[Rise], settings: Sequence[Setting]) -> str:
    if not found:
        return "This study has no two temperatures finished for every α, so it does not say what raising T costs."
    smoothed_first = [r for r in found if r.alpha] + [r for r in found if not r.alpha]
    head, *rest = smoothed_first
    start = f"{smoothing(head.alpha)}, raising T from {head.low:g} to {head.high:g} {_clause_of(scores, head, True)}"
    text = "; ".join([start, *(f"{smoothing(r.alpha)} it {_clause_of(scores, r)}" for r in rest)]) + "."
    only_axis = {s.kd_loss_scale for s in settings}
    if len(settings) > len(only_axis):  # another axis than the loss scale: the sentence is about the first setting
        text = f"{setting_label(settings[0], settings)}: {text}"
    verdicts = {r.change.verdict for r in found}
    if verdicts <= {"open"}:
        return f"The intervals do not allow an answer: {text}"
    if verdicts <= {"unknown"}:
        return f"Without intervals this is not yet an answer: {text}"
    return text[0].upper() + text[1:]


def _clause_of(scores: Scores, found: Rise, with_unit: bool = False) -> str:
    """What a rise does; that nothing was learnt at either end where that is so, and thus nothing can be lost."""
    lowest = floor(scores)
    if lowest and all(learnt_nothing(scores, Key(found.setting, found.alpha, t)) for t in (found.low, found.high)):
        return f"says nothing, as the students learnt nothing at either T (below {lowest.words})"
    return _clause(found.change, scores.words, with_unit)


def _clause(change: Estimate, words: Wording, with_unit: bool = False) -> str:
    unit = f" {words.points}" if with_unit or not change.settled else ""
    match change.verdict:
        case "falls":
            return f"costs {_with_unit(change.negated(), unit)}"
        case "rises":
            return f"gains {_with_unit(change, unit)}"
        case "same":
            return f"costs nothing ({_inside(change)})"
        case "open":
            return f"cannot be told from no change ({_inside(change)}{unit})"
        case _:
            return f"changes the score by {number(change.value, sign=True)} {words.points}"


def _with_unit(estimate: Estimate, unit: str) -> str:
    if estimate.kind == "examples":
        value, interval = uncertain(estimate).split(" ", 1)
        return f"{value}{unit} {interval}"
    return uncertain(estimate) + unit


def _inside(estimate: Estimate) -> str:
    """The estimate as it stands inside brackets."""
    return uncertain(estimate, sign=True).replace(" (", ", ").rstrip(")")


def _best_sentence(best: Best | None, settings: Sequence[Setting], words: Wording) -> tuple[str, str]:
    """(the sentence, the rivals' names where the sentence only counts them)."""
    if best is None:
        return "No student is finished, so there is no best cell.", ""
    name, score = key_label(best.key, settings), _inside_unit(best.score, words)
    if not best.others:
        return f"There is one cell only: {name} ({score}).", ""
    if len(best.rivals) == best.others:
        if best.score.kind == "none":
            return f"The highest is {name} ({score}), but without intervals it cannot be told from any other cell.", ""
        return f"No cell can be called best: the highest, {name} ({score}), cannot be told from any other.", ""
    if best.rivals:
        groups = _groups(best.rivals, settings)
        if len(groups) <= 2:
            return f"Best: {name} ({score}), which cannot be told from {listed(groups)}.", ""
        count = f"{len(best.rivals)} of the {best.others} other cells"
        return f"Best: {name} ({score}), which cannot be told from {count}.", f"These are {'; '.join(groups)}."
    assert best.runner_up is not None  # no rivals, so each lead has an interval
    next_key, lead = best.runner_up
    return f"Best: {name} ({score}), ahead of the next, {key_label(next_key, settings)}, by {uncertain(lead)}.", ""


def _inside_unit(estimate: Estimate, words: Wording) -> str:
    """The score as it stands inside brackets, with its unit: "89.4 ± 0.8 %", "31.2 BLEU, 29.9 to 32.5"."""
    if estimate.kind == "examples":
        return uncertain(estimate).replace(" (", f"{words.unit}, ").rstrip(")")
    return uncertain(estimate) + words.unit


def _groups(keys: Sequence[Key], settings: Sequence[Setting]) -> list[str]:
    groups: dict[tuple[float, str], list[float]] = {}
    for key in sorted(keys, key=lambda k: (k.alpha, k.temperature or 0.0)):
        label = setting_label(key.setting, settings) if key.setting else ""
        groups.setdefault((key.alpha, label), []).append(key.temperature or 0.0)
    return [
        f"α = {alpha:g} at T = {listed([f'{t:g}' for t in ts])}" + (f", {label}" if label else "")
        for (alpha, label), ts in groups.items()
    ]


def control_sentence(found: Control) -> str:
    """What is left of a rise of T once the gradient's scale no longer changes with it."""
    paper, twin, difference = found.paper.change, found.equalised.change, found.difference
    own = "with T² alone" if found.paper.setting.plain else "with the soft loss times 1"
    start = (
        f"{smoothing(found.paper.alpha).capitalize()}, T = {found.paper.low:g} → {found.paper.high:g}: "
        f"{uncertain(paper, sign=True)} points {own}, {uncertain(twin, sign=True)} with the gradient’s "
        f"scale equalised (difference {uncertain(difference, sign=True)})."
    )
    if "unknown" in (paper.verdict, twin.verdict, difference.verdict):
        return f"{start} Without intervals this settles nothing."
    if not (paper.verdict == "falls" and paper.notable):
        also = "; equalising changes the rise all the same" if difference.notable else ""
        return f"{start} There is no fall of a point or more to explain{also}."
    if difference.verdict != "rises":
        if twin.verdict == "falls" and difference.verdict == "same":
            return f"{start} The fall stays: the gradient’s scale does not explain it here."
        return f"{start} The intervals do not allow to say whether the gradient’s scale explains the fall."
    if twin.verdict == "falls":
        return (
            f"{start} Equalising takes away {uncertain(difference)} points of the fall; the rest "
            f"({uncertain(twin.negated())}) is not explained by the gradient’s scale."
        )
    remains = "nothing of it is left" if twin.verdict in ("same", "rises") else "no fall can be told from zero any more"
    return (
        f"{start} With the scale equalised {remains}: here the fall goes with the smaller gradient "
        "and need not be due to the softness of the targets."
    )
