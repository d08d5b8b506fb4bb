"""What a small gradient scale g means in a study, and what the study does not show: sentences from the numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_lskd.recipe import same_in_all_seeds
from hf_lskd.recipe_training import DEFAULT_OPTIMIZER
from hf_lskd.study.report_folder import Key, Setting, StudyFolder
from hf_lskd.study.report_numbers import (
    ENOUGH_SEEDS,
    SMALL_GRADIENT,
    Rise,
    Scores,
    control,
    effective_gradients,
    floor,
    learnt_nothing,
    mean_of,
    rise,
    rises,
)
from hf_lskd.study.report_translation_limits import translation_limits
from hf_lskd.study.report_words import key_label, listed, number, smoothing, uncertain

DEFAULT = f"{DEFAULT_OPTIMIZER} (transformers’ default)"
SCALE_FREE = ("adam", "lion", "adafactor", "lamb", "adagrad", "adalomo", "rmsprop", "ademamix")


def optimizer(folder: StudyFolder, setting: Setting) -> str | None:
    """The optimizer that the setting's records name, transformers' default where they name none; None without records."""
    for cell in folder.students:
        if cell.setting == setting:
            recipe = folder.records.get(cell.name, {}).get("recipe", {})
            blocks = _training_blocks(recipe, setting.student)
            named = next((str(block["optim"]) for block in blocks if "optim" in block), DEFAULT)
            return named if recipe else None
    return None


def _training_blocks(recipe: Mapping[str, Any], student: str) -> list[Mapping[str, Any]]:
    students = recipe.get("students") or recipe.get("student") or []
    students = [students] if isinstance(students, Mapping) else students
    own = [s.get("training") or {} for s in students if isinstance(s, Mapping) and s.get("name", student) == student]
    return [*own, recipe.get("training") or {}]


def scale_free(name: str | None) -> bool:
    """Whether the optimizer divides the loss's scale out, so that g is no learning rate (Adam and its kin)."""
    return name is not None and any(kin in name.lower() for kin in SCALE_FREE)


def why_no_rate(folder: StudyFolder, setting: Setting) -> str:
    """Why a smaller g is not simply a smaller learning rate in this setting; empty where it is."""
    name = optimizer(folder, setting)
    if scale_free(name):
        return f"the optimizer, {name}, divides the loss’s scale out again"
    if not setting.scale_student:
        return "the loss divides the teacher’s logits alone by T"
    return (
        "a hard loss, whose scale does not change with T, stands beside the soft one"
        if setting.kd_weight != 1.0
        else ""
    )


def small_gradient_sentences(scores: Scores, setting: Setting) -> list[str]:
    """One sentence for each α with cells whose effective g is below 0.3, and one on what follows; empty without such."""
    if not setting.scale_student:
        return ["g is defined for the loss that divides both sides by T; here only the teacher’s logits are divided."]
    found: list[str] = []
    changes: list[Rise] = []
    for alpha in scores.alphas(setting):
        small = _small(scores, setting, alpha)
        if small:
            found.append(_small_sentence(alpha, small, bool(why_no_rate(scores.folder, setting))))
            changes += [r for t, _ in small if (r := _from_lowest(scores, setting, alpha, t))]
    return [*found, _what_follows(scores, setting, changes)] if found else []


def _small(scores: Scores, setting: Setting, alpha: float) -> list[tuple[float, float]]:
    pairs = [(t, mean_of(effective_gradients(scores, Key(setting, alpha, t)))) for t in scores.temperatures(setting)]
    return [(t, g) for t, g in pairs if g is not None and g < SMALL_GRADIENT]


def _small_sentence(alpha: float, small: Sequence[tuple[float, float]], no_rate: bool) -> str:
    where = listed([f"{gradient(g)} at T = {t:g}" for t, g in small])
    text = f"{smoothing(alpha).capitalize()}, g = {where}"
    if no_rate:
        return f"{text}: the soft loss pulls with that share of its force on sharp targets."
    return f"{text}: trained at about {listed([fraction(g) for _, g in small])} of the effective learning rate."


def _from_lowest(scores: Scores, setting: Setting, alpha: float, temperature: float) -> Rise | None:
    lowest = scores.temperatures(setting, alpha)[0]
    return rise(scores, setting, alpha, lowest, temperature) if temperature > lowest else None


def _what_follows(scores: Scores, setting: Setting, changes: Sequence[Rise]) -> str:
    """What a small g means where accuracy changed so from the lowest T to the temperatures of small g."""
    name = optimizer(scores.folder, setting)
    if setting.kd_weight != 1.0:
        return (
            f"The hard loss beside it (weight {1 - setting.kd_weight:g}) keeps its scale: a small g shifts the balance towards "
            "the labels, and is no learning rate."
        )
    if scale_free(name):
        return (
            f"The optimizer is {name}, which divides the loss’s scale out again, up to its ε and to gradient clipping"
            f"{_measured_control(scores, setting)}."
        )
    if not changes:
        return "What the score does there cannot be said: no lower T to compare with is finished."
    if not any(r.change.value < 0 and r.change.verdict != "same" for r in changes):
        return f"{_score_noun(scores)} does not measurably fall at these temperatures all the same."
    has_control = any(control(scores, r) for r in rises(scores, setting))
    rest = (
        "the equalised row is the control."
        if has_control
        else "this study has no equalised row to tell them apart (“kd_loss_scale: [1.0, equalised]” in the grid adds one)."
    )
    lead = "The fall there cannot be told from too small a learning rate by these cells alone; "
    return lead + rest if name else f"If the optimizer is SGD: {lead[0].lower()}{lead[1:]}{rest}"


def _score_noun(scores: Scores) -> str:
    return "Accuracy" if scores.metric == "top1" else scores.words.metric


def _measured_control(scores: Scores, setting: Setting) -> str:
    """What equalising the gradient's scale changed of the rise of T in this study, or that only this could tell."""
    twins = [c for r in rises(scores, setting) if (c := control(scores, r))]
    if not twins:
        return ": a small g should matter little, which “kd_loss_scale: [1.0, equalised]” in the grid would show"
    measured = [f"{uncertain(c.difference, sign=True)} {smoothing(c.paper.alpha)}" for c in twins]
    span = f"T = {twins[0].paper.low:g} → {twins[0].paper.high:g}"
    return f". Measured here: equalising it changes what {span} does by {listed(measured)} (in {scores.words.points})"


def gradient(value: float) -> str:
    """g with two digits that say something: 0.39, 0.053."""
    return number(value, 3 if value < 0.1 else 2)


def fraction(value: float) -> str:
    """ "1/20" for 0.05."""
    return f"1/{round(1 / value)}" if value > 0 else "0"


def limits(scores: Scores, has_eta: bool) -> list[str]:
    """What the study does not show, most important first."""
    settings = scores.settings()
    if not settings:
        return ["No student is finished, so it shows nothing yet."]
    main = settings[0]
    same = "validation examples" if scores.metric == "top1" else scores.words.items
    return [
        *_nothing_learnt(scores, settings),
        *(translation_limits(scores, main) if scores.metric == "bleu" else []),
        *_seed_limits(scores, main),
        *_gradient_limits(scores, main),
        *_rule_of_thumb(scores, main),
        f"The best cell is chosen and scored on the same {same}, and no interval is widened for the number of "
        "comparisons: on fresh data its lead will be smaller.",
        "Learning rate, schedule and weight decay are the same in every cell of a row, not tuned for each: a cell that "
        f"learns slowly looks worse than it would with more training{_schedule(scores)}.",
        f"{_data(scores)}, one teacher architecture, {_students(scores)}: other {_other(scores)}, architectures and longer "
        "schedules are not tested.",
        *(
            ["η says where the classes moved. It does not show that this movement is what costs the accuracy."]
            if has_eta
            else ["Nothing on diffusion: this study has no η."]
        ),
    ]


def _nothing_learnt(scores: Scores, settings: Sequence[Setting]) -> list[str]:
    """The models below the floor, by name."""
    lowest = floor(scores)
    keys = [k for k in scores.cells if learnt_nothing(scores, k)]
    if lowest is None or not keys:
        return []
    students = [key_label(k, settings) for k in keys if k.setting]
    teachers = [f"the teacher of α = {k.alpha:g}" for k in keys if not k.setting]
    every = "every student" if len(students) == sum(1 for k in scores.cells if k.setting) else ""
    students = (
        [every] if every else [f"the student{'s' * (len(students) > 1)} of {'; '.join(students)}"] if students else []
    )
    return [
        f"Anything about models that learnt nothing to speak of. Below {lowest.words}: {listed([*teachers, *students])}. "
        "Differences between such models mean nothing."
    ]


def _data(scores: Scores) -> str:
    if scores.metric != "bleu":
        return "One data set"
    facts = scores.folder.translation
    direction = (
        f" ({facts['source_lang']} → {facts['target_lang']})" if {"source_lang", "target_lang"} <= set(facts) else ""
    )
    return f"One corpus in one direction{direction}"


def _other(scores: Scores) -> str:
    return "data, numbers of classes" if scores.metric != "bleu" else "languages, vocabularies"


def _seed_limits(scores: Scores, main: Setting) -> list[str]:
    counts = [len(scores.values(key)) for key in scores.cells if key.setting == main]
    common = listed(same_in_all_seeds(scores.folder.recipe)) if max(counts, default=0) > 1 else ""
    held = [f"What another choice would change: all seeds have {common} in common, and no interval holds that."]
    held = held if common else []
    if min(counts, default=0) >= ENOUGH_SEEDS:
        return [
            f"How scores scatter beyond these {min(counts)} seeds: the intervals assume a normal scatter from seed to seed "
            "(Student t), on this one data set.",
            *held,
        ]
    where = "fewer than 3 seeds" if max(counts, default=0) < ENOUGH_SEEDS else "some cells have fewer than 3 seeds"
    return [f"How far another seed would land: {where}, so no interval over seeds.", *held]


def _gradient_limits(scores: Scores, main: Setting) -> list[str]:
    if any(control(scores, r) for r in rises(scores, main)):
        return [
            "The equalised rows rescale the loss by one number a cell, from the teacher’s logits at the start; the "
            "gradient’s scale later in training is not controlled."
        ]
    if scale_free(optimizer(scores.folder, main)):
        return []
    return ["Whether a fall with T is due to softer targets or to a smaller gradient: there are no equalised rows."]


def _rule_of_thumb(scores: Scores, main: Setting) -> list[str]:
    """Whether (largest α, lowest T) beats (α = 0, lowest T), the paper's rule of thumb; silent where both do not exist."""
    alphas, lowest = scores.alphas(main), scores.temperatures(main)[0]
    if 0.0 not in alphas or len(alphas) < 2:
        return []
    high = alphas[-1]
    lead = scores.contrast([(1.0, Key(main, high, lowest)), (-1.0, Key(main, 0.0, lowest))])
    if lead is None or lead.verdict == "rises":
        return []
    return [
        f"That a smoothed teacher at low T is better: at T = {lowest:g}, α = {high:g} and α = 0 differ by "
        f"{uncertain(lead, sign=True)} points."
    ]


def _schedule(scores: Scores) -> str:
    training = scores.folder.recipe.get("training") or {}
    epochs = training.get("num_train_epochs") if isinstance(training, Mapping) else None
    return f" ({epochs:g} epochs here)" if isinstance(epochs, int | float) else ""


def _students(scores: Scores) -> str:
    count = len(scores.student_names())
    return "one student architecture" if count == 1 else f"{count} student architectures"
