"""What the page calls the score, its unit and the items it is measured on, for each kind of work."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """Nouns of one kind of work; `unit` stands behind a score, `points` behind a difference, `curve` is watched in training."""

    metric: str
    unit: str
    points: str
    axis: str
    items: str
    split: str
    kept: str
    train: str
    curve: str
    curve_label: str
    resampled: str


IMAGES = Wording(
    metric="Top-1",
    unit=" %",
    points="points",
    axis="Top-1, %",
    items="test examples",
    split="validation split",
    kept="stored predictions",
    train="training images",
    curve="top1",
    curve_label="Top-1 on validation",
    resampled="examples",
)


def translation(split: str) -> Wording:
    """The nouns of a translation study whose models are judged on `split` ("test" or "validation")."""
    return Wording(
        metric="BLEU",
        unit=" BLEU",
        points="BLEU points",
        axis="BLEU",
        items="held-out sentences",
        split=f"{split} split",
        kept="stored translations",
        train="target tokens of the training text",
        curve="nll",
        curve_label="NLL on validation, nats a token",
        resampled="sentences",
    )
