"""The sentences and tables of a model card, each made from the record alone; numbers are rounded, never computed here."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_lskd.card_data import OWN, of_data
from hf_lskd.card_facts import Record, extra, facts, model_spec
from hf_lskd.card_tables import estimate, eta_table, exports_table, grid_table, number, results_table, sentence
from hf_lskd.recipe import same_in_all_seeds
from hf_lskd.record import exact

UNITS = {"top1": ("top-1", " %", "points"), "bleu": ("BLEU", "", "BLEU points"),
         "accuracy": ("accuracy", "", "points")}  # fmt: skip


def of(record: Record) -> dict[str, Any]:
    """Every value that the template asks for."""
    return {
        "title": title(record),
        "summary": summary(record),
        "answer": extra(record).get("answer") or [],
        "facts": facts(record),
        "verdict": verdict(record),
        "results": results_table(record),
        "grid": grid_table(extra(record).get("grid") or []),
        "grid_basis": grid_basis(record),
        "metric_name": metric_words(record)[0],
        "basis": basis(record),
        "calibration": calibration(record),
        "eta": eta(record),
        "load": load(record),
        "use": use(record),
        "limits": limits(record),
        "data": data(record),
        "cost": cost(record),
        "exports": exports_table(extra(record).get("exports") or []),
        "reproduce": reproduce(record),
        "provenance": provenance(record),
    }


def task_of(record: Record) -> str:
    """ "image_classification", "translation", or empty where the record does not say."""
    said = extra(record).get("task") or (record.get("recipe") or {}).get("task") or ""
    return str(said)


def split_of(record: Record) -> str:
    """The split that the model was judged on."""
    return str((record.get("translation") or {}).get("split") or "validation")


def languages(record: Record) -> list[str]:
    """Source and target language of a translation model."""
    said = record.get("translation") or {}
    return [str(said[key]) for key in ("source_lang", "target_lang") if said.get(key)]


def metric_words(record: Record) -> tuple[str, str, str]:
    """(name, unit behind a value, unit of a difference) of the metric that the card is about."""
    return UNITS.get(str(extra(record).get("metric")), ("score", "", "points"))


def title(record: Record) -> str:
    """The repository's name, or the study's and the cell's."""
    if named := extra(record).get("repo_id"):
        return str(named).rpartition("/")[2]
    study = (record.get("study") or {}).get("name")
    return f"{study}-{record['name']}" if study else str(record["name"])


def summary(record: Record) -> str:
    model = extra(record).get("model") or {}
    kind = model.get("architecture") or model_spec(record).get("model") or "model"
    what = {"image_classification": "Image classifier", "translation": "Translation model"}.get(
        task_of(record), "Model"
    )
    spoken = f" ({' → '.join(languages(record))})" if languages(record) else ""
    on = of_data(record)["name"]
    if record["role"] == "teacher":
        return f"{what}{spoken}, `{kind}`, trained on {on} with label smoothing α = {exact(record['label_smoothing'])}. A teacher."
    many = bool((extra(record).get("teacher") or {}).get("members"))
    teacher, were = ("an ensemble of teachers", "were") if many else ("a teacher", "was")
    taught = (
        ""
        if record.get("label_smoothing") is None
        else f" that {were} smoothed with α = {exact(record['label_smoothing'])}"
    )
    taught = taught if record.get("label_smoothing") != 0 else f" that {were} not smoothed (α = 0)"
    return f"{what}{spoken}, `{kind}`, distilled on {on} at T = {exact(record['temperature'])} from {teacher}{taught}."


# ---- Results


def verdict(record: Record) -> str:
    """One paragraph on the score beside the teacher's and the undistilled student's; plain where it is bad."""
    name, unit, points = metric_words(record)
    metric, lowest = extra(record).get("metric"), extra(record).get("floor") or {}
    value = record["metrics"].get(metric) if metric else None
    if value is None:
        return "The record has no score of its own."
    parts = [
        f"{sentence(name)} is {estimate(extra(record).get('score') or {'value': value}, unit)} on the {split_of(record)} split."
    ]
    if lowest.get("value") is not None and value < lowest["value"]:
        parts.append(f"**It learnt nothing to speak of**: that is below {lowest['words']}.")
    for key, who in (("teacher", "its teacher"), ("undistilled", "the same student without a teacher")):
        other = extra(record).get(key) or {}
        if difference := other.get("difference"):
            parts.append(compared(difference, who, estimate(other["score"], unit), points))
    return " ".join(parts)


def compared(difference: Mapping[str, Any], who: str, score: str, points: str) -> str:
    text = f"{sentence(who)} has {score}; the difference, {estimate(difference, f' {points}', sign=True)}, "
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None:
        return text + "has no interval."
    if low <= 0 <= high:
        return text + "cannot be told from none."
    return text + ("is in its favour." if low > 0 else "**is against it**.")


def basis(record: Record) -> str:
    """What the brackets are."""
    score = extra(record).get("score") or {}
    if score.get("kind") == "examples":
        items = "sentences" if task_of(record) == "translation" else "examples"
        text = (
            f"Brackets are {exact(extra(record)['level'])} % intervals of a bootstrap over the held-out {items} (paired where two "
            "models are compared): they say nothing of what another seed would change."
        )
        return text + (" Where ± stands, it is Student's t over seeds." if extra(record).get("over_seeds") else "")
    return "These numbers have no interval."


def grid_basis(record: Record) -> str:
    kinds = {cell.get("kind") for cell in extra(record).get("grid") or []}
    return "± over seeds" if kinds == {"seeds"} else "in brackets: over held-out items"


def calibration(record: Record) -> str:
    metrics = record["metrics"]
    parts = []
    if metrics.get("ece") is not None:
        parts.append(f"Expected calibration error {number(metrics['ece'], 2)} %.")
    if metrics.get("nll") is not None:
        a_token = " a target token" if task_of(record) == "translation" else ""
        parts.append(f"Negative log-likelihood {number(metrics['nll'], 3)} nats{a_token} (α = 0).")
    if metrics.get("agreement") is not None:
        parts.append(f"Its top class is its teacher's for a share of {number(metrics['agreement'], 3)} of the items.")
    if record["role"] == "student" and (record.get("temperature") or 0) > 1 and metrics.get("ece") is not None:
        parts.append("A student of raised T is read at temperature one here, where it may be far from calibrated.")
    return " ".join(parts) or "Not measured."


def eta(record: Record) -> str:
    rows, signature = extra(record).get("eta") or [], extra(record).get("eta_signature") or {}
    if not rows:
        return "Not measured: " + (
            "it compares students." if record["role"] == "teacher" else "the study has no η for this cell."
        )
    said = f"Signature: distances divided by `{signature.get('reference')}`; `{signature.get('sets')}`."
    return (
        "η in percent of how far the target classes' centroids move to similar (S1) and dissimilar (S2) classes from a lower T to a "
        "higher one, mean over targets; *systematic* is the share of targets nearer to S1 and farther from S2, beside its share "
        f"between students that differ by the seed alone (– where the study has none).\n\n{eta_table(rows)}\n\n{said}"
    )


# ---- Use


def load(record: Record) -> str:
    """Three lines that load it, without this package; as ruff formats them."""
    name = repository(record)
    if task_of(record) == "translation":
        return (
            "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n\n"
            f'model = AutoModelForSeq2SeqLM.from_pretrained("{name}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
        )
    return (
        "from transformers import pipeline\n\n"
        f'classify = pipeline("image-classification", model="{name}")\n'
        'print(classify("picture.png"))'
    )


def repository(record: Record) -> str:
    return str(extra(record).get("repo_id") or title(record))


def library(record: Record) -> str:
    return str((extra(record).get("model") or {}).get("library") or "transformers")


def use(record: Record) -> str:
    """What follows the three lines, and what the model is for."""
    then = ""
    if task_of(record) == "translation":
        call = 'model.generate(**tokenizer(["…"], return_tensors="pt"))'
        then = f"`tokenizer.batch_decode({call}, skip_special_tokens=True)` translates. "
    elif library(record) == "timm":
        then = f'`timm.create_model("hf-hub:{repository(record)}", pretrained=True)` is the same model in timm. '
    return (
        f"{then}Meant for looking into what label smoothing and temperature do to distillation, and as an example of what a study "
        "leaves behind. It knows the classes or phrases of its data and nothing else; nothing should be decided by it."
    )


def limits(record: Record) -> list[str]:
    found = []
    score = extra(record).get("score") or {}
    if not extra(record).get("over_seeds"):
        found.append("One model of one seed: another seed would give another number, and by how much is not said here.")
    common = same_in_all_seeds(record.get("recipe") or {})
    if extra(record).get("over_seeds") and common and record["role"] == "student":
        found.append(
            f"Its study's seeds have {' and '.join(common)} in common: no ± here holds what another would change."
        )
    if score.get("low") is None:
        found.append("No interval: nothing here says how far the score may be off.")
    if record["role"] == "student" and record.get("target_gradient") is not None:
        found.append(
            "T² keeps the loss's gradient full-size only while g is near one: a fall at a small g may be a smaller learning rate."
        )
    if model_spec(record).get("pretrained") is False:
        found.append(
            "Trained from random weights for a short time; a longer training may order the temperatures otherwise."
        )
    found.append("Not tried on data from elsewhere, nor for fairness or robustness.")
    return found


def data(record: Record) -> str:
    said, more = of_data(record), extra(record)
    licence = more.get("license_name") or more.get("license") or said.get("license") or "unknown"
    block = (record.get("recipe") or {}).get("data") or {}
    kept = (
        "validation",
        "seed",
        "held_out",
        "scope",
        "pairs",
        "test_pairs",
        "name",
        "source_lang",
        "target_lang",
        "subset",
    )
    options = "; ".join(f"{key}: {plain(block[key])}" for key in kept if block.get(key) is not None)
    detail = f" Options: {options}." if options else ""
    return f"{said.get('words', OWN)}{detail} Licence of the weights: {licence}."


def plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else exact(value)


def cost(record: Record) -> str:
    time, machine = record.get("durations") or {}, record.get("hardware") or {}
    parts = []
    if time.get("train") is not None:
        parts.append(
            f"Training took {number(time['train'], 1)} s"
            + (f", measuring {number(time['evaluate'], 1)} s" if time.get("evaluate") is not None else "")
        )
    on = machine.get("gpu") or machine.get("cpu")
    if on:
        shape = f"{exact(machine.get('world_size', 1))} process(es) of {exact(machine.get('threads'))} thread(s)"
        parts.append(f"{'on' if parts else 'On'} {on}, {shape}")
    text = ", ".join(parts) + "." if parts else "Not recorded."
    peak = record.get("peak_memory_mb")
    text += f" Peak memory {number(peak, 0)} MiB." if peak else ""
    if (record.get("lockstep") or 1) > 1:
        text += (
            f" It was one of {exact(record['lockstep'])} students that were trained together: they shared the reading of the data and "
            "the teacher's answers, so that its time may be less than alone, and the peak memory is that of all of them."
        )
    return f"{text} Energy was not measured."


def reproduce(record: Record) -> str:
    if record.get("recipe"):
        return f"hf-lskd study record.json --output-dir runs/{record['study']['name']}"
    return "python the-script-that-made-it.py  # its training arguments: record.json, `arguments`"


def provenance(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted((record.get("versions") or {}).items()))
    sign = f" Signature of the cell: `{record['signature']}`." if record.get("signature") else ""
    again = (
        "The record holds the whole recipe; the command makes this model and all others of its study. "
        if record.get("recipe")
        else ""
    )
    return f"{again}Versions: {versions}.{sign} This page was made from [record.json](record.json) alone."


def index_table(index: Mapping[str, Any]) -> list[str]:
    """A study's cells with their scores, linked to their repositories."""
    name, unit, _ = UNITS.get(index["metric"], ("score", "", ""))
    rows = [f"| model | α | T | {name} |", "|---|---|---|---|"]
    for cell in index["cells"]:
        temperature = "–" if cell["temperature"] is None else exact(cell["temperature"])
        link = f"[{cell['name']}](https://huggingface.co/{cell['repo_id']})"
        rows.append(f"| {link} | {exact(cell['label_smoothing'])} | {temperature} | {number(cell['score'], 1)}{unit} |")
    return rows
