"""A record -> the text of a model card: no model, data, study's folder or GPU at hand.

What a record holds for a card beyond the cell itself stands under its key `card` (`study.card_record` or a trainer writes it).
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_lskd import card_facts
from hf_lskd import card_words as words
from hf_lskd.card_data import SOURCES, of_data
from hf_lskd.errors import InputError
from hf_lskd.record import FILE, read_record

TEMPLATE = Path(__file__).with_suffix(".md")
CARD = "README.md"
TAGS = ("hf_lskd", "knowledge-distillation", "label-smoothing")
PIPELINES = {"image_classification": "image-classification", "translation": "translation"}
KNOWN = ("accuracy", "bleu", "chrf")  # to the Hub
# Metrics of a record that a model index lists: the name that `evaluate` knows, and what a reader calls it.
METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "top1": ("accuracy", "Top-1, %"),
    "top5": ("accuracy", "Top-5, %"),
    "bleu": ("bleu", "BLEU"),
    "chrf": ("chrf", "chrF"),
    "ece": ("ece", "Expected calibration error, %"),
    "nll": ("nll", "Negative log-likelihood, nats"),
}


def render(record: Mapping[str, Any]) -> str:
    """The card of one model, or of a study's index. Raises InputError for a record without a finished model."""
    if record.get("kind") == "study":
        return render_study(record)
    check(record)
    return str(ModelCard.from_template(metadata(record), template_path=str(TEMPLATE), **words.of(record))) + "\n"


def check(record: Mapping[str, Any]) -> None:
    """Raise InputError unless the record is of a model that was finished."""
    if record.get("status") != "complete":
        error = (record.get("error") or {}).get("message", "")
        raise InputError(
            f"{record.get('name', 'the record')} is not finished ({error or record.get('status')})",
            "the record of a finished cell",
            "Run the study again: it does what is missing.",
        )


def metadata(record: Mapping[str, Any]) -> ModelCardData:
    """The front matter: library, task, base model, data, metrics, licence, and a model index with our results and intervals."""
    extra = record.get("card") or {}
    results = eval_results(record)
    bases = base_models(record)
    task = words.task_of(record)
    return ModelCardData(
        language=words.languages(record) or None,
        license=extra.get("license") or of_data(record).get("license") or "unknown",
        license_name=extra.get("license_name"),
        license_link=extra.get("license_link"),
        library_name=(extra.get("model") or {}).get("library") or "transformers",
        pipeline_tag=PIPELINES.get(task),
        base_model=bases[0] if len(bases) == 1 else bases or None,
        base_model_relation="finetune" if bases else None,
        datasets=[of_data(record)["id"]] if of_data(record).get("id") else None,
        metrics=list(dict.fromkeys(r.metric_type for r in results if r.metric_type in KNOWN)) or None,
        tags=[*TAGS, *(["distillation-teacher"] if record["role"] == "teacher" else []), *extra.get("tags", ())],
        model_name=words.title(record) if results else None,
        eval_results=results or None,
    )


def base_models(record: Mapping[str, Any]) -> list[str]:
    """Hub names of the teacher or of an ensemble's members, where they have one, and of the weights that training began with."""
    extra, recipe = record.get("card") or {}, record.get("recipe") or {}
    teacher = extra.get("teacher") or {}
    spec = card_facts.model_spec(record)
    named = spec.get("pretrained") is True and is_hub_name(spec.get("model"))
    taught = [one.get("repo_id") for one in teacher.get("members") or [teacher]]
    given = recipe.get("teacher") or {}
    if record["role"] == "student" and not any(taught) and given.get("pretrained") is True:
        taught = [given["model"]] if is_hub_name(given["model"]) else []
    found = [*taught, spec["model"] if named else None, *extra.get("base_models", ())]
    return list(dict.fromkeys(name for name in found if name))


def is_hub_name(name: Any) -> bool:
    """Whether a model's name is an owner's on the Hub, as far as its form tells."""
    return isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~"))


def eval_results(record: Mapping[str, Any]) -> list[EvalResult]:
    """Our results, the main one with its interval; numbers as in the record, rounded to four decimals."""
    extra, data = record.get("card") or {}, of_data(record)
    task = PIPELINES.get(words.task_of(record), "other")
    score = extra.get("score") or {}
    found = []
    for name, (kind, label) in METRICS.items():
        value = record["metrics"].get(name)
        if value is None:
            continue
        args: dict[str, Any] = {}
        if name == extra.get("metric") and score.get("low") is not None:
            interval = [round(score["low"], 4), round(score["high"], 4)]
            args = {"interval": interval, "level": extra["level"], "over": score["kind"]}
        if signature := (record.get("translation") or {}).get(f"{name}_signature"):
            args["signature"] = signature
        found.append(
            EvalResult(
                task_type=task,
                dataset_type=data.get("id") or "unknown",
                dataset_name=data.get("name") or "unknown",
                dataset_split=words.split_of(record),
                metric_type=kind,
                metric_name=label,
                metric_value=round(value, 4),
                metric_args=args or None,
            )
        )
    return found


def render_study(index: Mapping[str, Any]) -> str:
    """The card of a study's index repository, from what `study.card_record.study_record` gathers."""
    data = SOURCES.get(index["source"], {})
    card_data = ModelCardData(
        license=index.get("license") or data.get("license") or "unknown",
        license_name=index.get("license_name"),
        license_link=index.get("license_link"),
        pipeline_tag=PIPELINES[index["task"]],
        datasets=[data["id"]] if data.get("id") else None,
        tags=[*TAGS, "study"],
    )
    lines = [f"# {index['name']}: label smoothing α × temperature T", "", *(f"> {line}\n>" for line in index["answer"])]
    lines += ["", "The whole page is [report.html](report.html); its numbers are in [results.csv](results.csv)."]
    lines += ["Every finished model has a repository of its own:", "", *words.index_table(index), ""]
    lines += ["Made again by:", "", "```", f"hf-lskd study study.json --output-dir runs/{index['name']}", "```", ""]
    return f"---\n{card_data.to_yaml()}\n---\n\n" + "\n".join(lines)


def write_cards(root: Path) -> list[Path]:
    """Render every `<name>/record.json` under `root` into the README.md beside it; returns what was written."""
    written = []
    for path in sorted(root.glob(f"*/{FILE}")):
        record = read_record(path.parent) or {}
        (path.parent / CARD).write_text(render(record), encoding="utf-8")
        written.append(path.parent / CARD)
    return written


if __name__ == "__main__":
    for written in write_cards(Path(sys.argv[1] if len(sys.argv) > 1 else "model_cards")):
        print(written)
