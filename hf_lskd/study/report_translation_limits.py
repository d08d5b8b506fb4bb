"""What a translation study does not show: its size, whether its students had learnt their training text, what BLEU is."""

from hf_lskd.study.report_folder import Key, Setting
from hf_lskd.study.report_numbers import Scores, mean_of, rises
from hf_lskd.study.report_words import listed, number, smoothing

SMALL_TEST = 2000  # held-out pairs; IWSLT's test sets have more
SLOW = 1.5  # times the lowest temperature's NLL on the training text


def translation_limits(scores: Scores, main: Setting) -> list[str]:
    """Sentences for the list of limits, most important first."""
    pairs = scores.folder.translation.get("pairs")
    found = []
    if isinstance(pairs, int) and pairs < SMALL_TEST:
        found.append(
            f"The paper’s effect on translation. This is a small study ({pairs} held-out pairs): it shows that the machinery "
            "works, and how fast a student of this size learns at each T on this text. In short training a student may learn "
            "more slowly at a raised T, and a fall here be nothing else; what smoothing and T do to a translation model trained "
            "to convergence on a real corpus it does not show."
        )
    slow = slow_learning(scores, main)
    return [
        *found,
        *([f"Whether a fall would last. {slow}"] if slow else []),
        "How good the translations are to a reader: BLEU and chrF compare with one reference each. BLEU on tokenised, "
        "lower-cased text is another number, and not to be set beside BLEU.",
    ]


def slow_learning(scores: Scores, setting: Setting) -> str:
    """That students at the highest T have not learnt their training text as those at the lowest; empty where they have."""
    changes = rises(scores, setting)
    found = []
    for one in changes:
        low, high = (mean_of(scores.values(Key(setting, one.alpha, t), "train_nll")) for t in (one.low, one.high))
        if low is not None and high is not None and high > SLOW * low:
            found.append(f"{number(low, 2)} and {number(high, 2)} {smoothing(one.alpha)}")
    if not found:
        return ""
    return (
        f"On the training text itself NLL at T = {changes[0].low:g} and T = {changes[0].high:g} is {listed(found)}: at the high T "
        "the students have not learnt what they were trained on (or are badly calibrated). Longer training may close such a gap."
    )
