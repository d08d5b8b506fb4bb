"""Model cards: every number is its record's, the Hub's own parser reads them, and bad results are called bad."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors.numpy import save_file

from hf_lskd import card
from hf_lskd.analysis import mean_and_t_interval
from hf_lskd.cli_publish import cell_upload, study_uploads
from hf_lskd.errors import InputError
from hf_lskd.recipe import load_recipe
from hf_lskd.record import file_sha256
from hf_lskd.study.card_exports import exports_of
from hf_lskd.study.card_record import card_record, study_record
from tests.hub_metadata import metadata_errors
from tests.study_folder import make_study

ROOT = Path(__file__).resolve().parents[1]
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/record.json"))
CONSTANTS = {"2022"}  # the paper's year
PLACES = {"top1": 1, "top5": 1, "ece": 1, "bleu": 1, "chrf": 1, "nll": 3, "length_ratio": 3}
HEADS = {"top-1, %": "top1", "top-5, %": "top5", "ECE, %": "ece", "NLL, nats": "nll", "BLEU": "bleu", "chrF": "chrf",
         "length ratio": "length_ratio"}  # fmt: skip


def leaves(value: Any) -> Iterator[Any]:
    """Every number and text of a record."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield value


def unknown_numbers(text: str, record: dict[str, Any]) -> list[str]:
    """The numbers of a card that are no rounding of a number of the record and stand in none of its texts."""
    found = list(leaves(record))
    numbers = [float(leaf) for leaf in found if not isinstance(leaf, str)]
    words = {word for leaf in found if isinstance(leaf, str) for word in numbers_in(leaf)}
    lost = []
    for word in numbers_in(text):
        digits = len(word.partition(".")[2])
        rounded = (f"{abs(number):.{digits}f}" for number in numbers)
        if word not in words | CONSTANTS and word not in rounded:
            lost.append(word)
    return lost


def numbers_in(text: str) -> list[str]:
    """Whole numbers and decimals that are no part of a name ("top-1", "S1", "a0.1-s0") or of a version."""
    found = re.findall(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)*(?:e-?\d+)?(?![\w-])", text)
    return [word.replace(",", "").rstrip(".") for word in found]


def tables(text: str) -> Iterator[list[dict[str, str]]]:
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        yield [dict(zip(rows[0], row)) for row in rows[2:]]


def first_number(cell: str) -> float:
    return float(re.findall(r"[−+]?\d+(?:\.\d+)?", cell)[0].replace("−", "-"))


@pytest.fixture(params=CARDS, ids=lambda path: path.name)
def published(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A card as it is rendered now, which the stored one must equal, and its record."""
    record = json.loads((request.param / "record.json").read_text())
    return card.render(record), record


def test_there_are_cards_of_letters_digits_and_phrases_bad_ones_among_them() -> None:
    names = " ".join(path.name for path in CARDS)
    assert all(study in names for study in ("glyphs", "digits", "cldr_en_de"))
    texts = [(path / "README.md").read_text() for path in CARDS]
    assert sum("**is against it**" in text for text in texts) >= 2
    assert sum("learnt nothing" in text for text in texts) >= 1


def test_each_number_of_a_card_is_its_records(published: tuple[str, dict[str, Any]]) -> None:
    text, record = published
    assert len(numbers_in(text)) > 40
    assert unknown_numbers(text, record) == []


def test_a_changed_digit_is_noticed(published: tuple[str, dict[str, Any]]) -> None:
    text, record = published
    score = f"{record['card']['score']['value']:.1f}"
    assert unknown_numbers(text.replace(score, "12345.6"), record)
    wrong = json.loads(json.dumps(record))
    wrong["metrics"]["nll"] += 0.1234
    assert card.render(wrong) != text
    assert unknown_numbers(card.render(wrong), record)


@pytest.mark.parametrize("folder", CARDS, ids=lambda path: path.name)
def test_a_stored_card_is_what_its_record_renders_to(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    record = json.loads((folder / "record.json").read_text())
    assert card.render(record) == text
    assert unknown_numbers(text, record) == []


def test_the_results_table_holds_the_named_metrics(published: tuple[str, dict[str, Any]]) -> None:
    text, record = published
    results = next(rows for rows in tables(text) if rows and "**this model**" in rows[0].values())
    beside = {"**this model**": record["metrics"], "its teacher": (record["card"].get("teacher") or {}).get("metrics")}
    seen = 0
    for row in results:
        if (metrics := beside.get(row[""])) is None:
            continue
        for head, name in HEADS.items():
            if head in row:
                assert first_number(row[head]) == pytest.approx(metrics[name], abs=0.51 * 10 ** -PLACES[name])
                seen += 1
    assert seen == len(HEADS & results[0].keys()) * (1 if record["role"] == "teacher" else 2)


def test_the_hubs_parser_reads_the_front_matter(published: tuple[str, dict[str, Any]]) -> None:
    text, record = published
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    assert metadata_errors(text) == ([], [])
    images = record["recipe"]["task"] == "image_classification"
    assert data.library_name == ("timm" if images else "transformers")
    assert data.pipeline_tag == ("image-classification" if images else "translation")
    assert (data.license, len(data.datasets)) == ("apache-2.0", 1)
    assert data.metrics == (["accuracy"] if images else ["bleu", "chrf"])
    teacher = record["card"].get("teacher")
    assert data.base_model == (teacher["repo_id"] if teacher else None)
    assert data.get("base_model_relation") == ("finetune" if teacher else None)
    assert set(card.TAGS) <= set(data.tags)


def test_the_model_index_holds_our_results_and_the_interval(published: tuple[str, dict[str, Any]]) -> None:
    text, record = published
    results = ModelCard(text).data.eval_results
    assert all(isinstance(result, EvalResult) for result in results)
    by_name = {result.metric_name: result for result in results}
    for name, (_, label) in card.METRICS.items():
        if name in record["metrics"]:
            assert by_name.pop(label).metric_value == pytest.approx(record["metrics"][name], abs=5.1e-5)
    assert by_name == {}
    main = next(r for r in results if (r.metric_args or {}).get("interval"))
    score = record["card"]["score"]
    assert main.metric_args["interval"] == pytest.approx([score["low"], score["high"]], abs=5.1e-5)
    assert score["low"] <= main.metric_value <= score["high"]


def test_the_record_in_a_card_is_a_recipe(published: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    text, record = published
    assert f"hf-lskd study record.json --output-dir runs/{record['study']['name']}" in text
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    found = load_recipe(path).to_dict()
    assert found["switches"].pop("teacher_cache") == "none"  # a key that is younger than the record
    assert found == record["recipe"]


def test_writing_all_cards_changes_nothing(tmp_path: Path) -> None:
    for folder in CARDS:
        (tmp_path / folder.name).mkdir()
        (tmp_path / folder.name / "record.json").write_bytes((folder / "record.json").read_bytes())
    assert len(card.write_cards(tmp_path)) == len(CARDS)
    for folder in CARDS:
        assert (tmp_path / folder.name / "README.md").read_bytes() == (folder / "README.md").read_bytes()


# ---- What is gathered from a study


def with_models(study: Path) -> Path:
    """Weights of one value each, which is all that a card asks of them."""
    for cell in (study / "cells").iterdir():
        (cell / "model").mkdir(exist_ok=True)
        (cell / "model" / "config.json").write_text('{"model_type": "timm_wrapper", "architecture": "test_byobnet"}')
        save_file({"w": np.zeros(3, np.float32)}, cell / "model" / "model.safetensors")
    return study


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_models(
        make_study(
            tmp_path_factory.mktemp("seeds"), kd_weights=(1.0, 0.0), temperatures=(1.0, 2.0), targets=12, examples=600
        )
    )


def rows(study: Path) -> list[dict[str, str]]:
    with (study / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_student_stands_beside_its_teacher_and_the_undistilled_student(seeds: Path) -> None:
    record = card_record(seeds / "cells" / "student-a0.1-T2-s1", "me/x", teacher_repo="me/t")
    by_name = {row["name"]: float(row["top1"]) for row in rows(seeds)}
    mine = by_name["student-a0.1-T2-s1"]
    for key, name in (("teacher", "teacher-a0.1-s1"), ("undistilled", "student-a0-T1-w0-s1")):
        other = record["card"][key]
        assert other["name"] == name
        assert other["difference"]["value"] == pytest.approx(mine - by_name[name], abs=1e-6)
        assert other["difference"]["low"] < other["difference"]["value"] < other["difference"]["high"]
    text = card.render(record)
    assert re.search(r"\| without a teacher \| \d", text)
    assert ModelCard(text).data.base_model == "me/t"


def test_three_seeds_have_a_mean_and_its_interval(seeds: Path) -> None:
    record = card_record(seeds / "cells" / "student-a0.1-T2-s1", "me/x")
    scores = [float(row["top1"]) for row in rows(seeds) if re.fullmatch(r"student-a0\.1-T2-s\d", row["name"])]
    mean, low, high = mean_and_t_interval(scores)
    found = record["card"]["over_seeds"]
    assert (found["value"], found["low"], found["high"]) == pytest.approx((mean, low, high), abs=1e-5)
    assert f"| mean of 3 seeds | {mean:.1f} ± {(high - low) / 2:.1f} |" in card.render(record)
    assert unknown_numbers(card.render(record), json.loads(json.dumps(record))) == []


def test_eta_travels_with_its_signature_and_its_chance(seeds: Path) -> None:
    record = card_record(seeds / "cells" / "student-a0.1-T2-s0", "me/x")
    with (seeds / "eta.csv").open(newline="") as file:
        eta = [r for r in csv.DictReader(file) if (r["label_smoothing"], r["kd_weight"]) == ("0.1", "1.0")]
    first = record["card"]["eta"][0]
    same = [
        float(r["eta_similar"])
        for r in eta
        if (float(r["T1"]), float(r["T2"])) == (1.0, 2.0) and r["split"] == first["split"]
    ]
    assert first["similar"]["value"] == pytest.approx(np.mean(same))
    assert record["card"]["eta_signature"] == {"reference": eta[0]["reference"], "sets": eta[0]["sets"]}
    assert first["chance"] is not None
    assert eta[0]["sets"] in card.render(record)


def test_a_cell_outside_a_study_has_a_card_without_intervals(seeds: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in (seeds / "cells" / "student-a0-T2-s0").rglob("*"):
        if path.is_file():
            (alone / path.name).write_bytes(path.read_bytes())
    (alone / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (alone / name).rename(alone / "model" / name)
    text = card.render(card_record(alone, "me/x"))
    assert "These numbers have no interval." in text
    assert "the study has no η" in text
    assert metadata_errors(text) == ([], [])


def test_a_study_index_names_each_repository(seeds: Path) -> None:
    names = {path.name: f"me/x-{path.name}" for path in (seeds / "cells").iterdir()}
    index = study_record(seeds, "me/x", names)
    text = card.render({"kind": "study", **index})
    assert all(f"(https://huggingface.co/{target})" in text for target in names.values())
    assert metadata_errors(text) == ([], [])


def test_a_teacher_whose_record_changed_is_not_taken_for_the_teacher(seeds: Path, tmp_path: Path) -> None:
    study = with_models(
        make_study(tmp_path / "s", seeds=1, temperatures=(1.0, 2.0), eta=False, targets=20, examples=50)
    )
    path = study / "cells" / "student-a0-T1-s0" / "record.json"
    record = json.loads(path.read_text())
    record["teacher"] = {"name": "teacher-a0-s0", "record_sha256": "0" * 64}
    path.write_text(json.dumps(record))
    (study / "results.csv").rename(study / "elsewhere.csv")  # what is left is the record's own word
    assert card_record(path.parent, "me/x")["card"]["teacher"]["metrics"] == {}


SEED_1 = "student-a0.1-T2-s1"
MEMBERS = ["teacher-a0.1-s0", "teacher-a0.1-s1"]


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    """A drawn study, one of whose students says that it learnt from two teachers, of its own seed and of another."""
    study = with_models(
        make_study(tmp_path / "s", seeds=2, temperatures=(1.0, 2.0), eta=False, targets=20, examples=50)
    )
    path = study / "cells" / SEED_1 / "record.json"
    record = json.loads(path.read_text())
    members = [{"name": name, "record_sha256": "0" * 64} for name in MEMBERS]
    metrics = {"top1": 91.75, "top5": 98.25, "ece": 3.25, "nll": 0.3125}
    record["teacher"] = {"name": " + ".join(MEMBERS), "of": "probabilities", "members": members, "metrics": metrics}
    path.write_text(json.dumps(record))
    return study


def test_an_ensembles_student_stands_beside_the_ensemble_and_not_beside_one_member(ensemble: Path) -> None:
    cell = ensemble / "cells" / SEED_1
    record = card_record(cell, "me/x", teacher_repo=["me/a", "me/b"])
    text = card.render(record)
    found = record["card"]["teacher"]
    assert found["name"] == "teacher-a0.1-s0 + teacher-a0.1-s1"
    assert found["metrics"]["top1"] == 91.75
    assert not {"score", "difference"} & found.keys()  # those of one teacher
    assert re.search(r"\| its teachers together \| 91\.8 \| 98\.2 \| 3\.2 \| 0\.312 \|", text)
    assert "an ensemble of teachers that were smoothed with α = 0.1" in text
    assert ModelCard(text).data.base_model == ["me/a", "me/b"]
    assert all(f"[{repo}](https://huggingface.co/{repo})" in text for repo in ("me/a", "me/b"))
    assert metadata_errors(text) == ([], [])
    assert unknown_numbers(text, json.loads(json.dumps(record))) == []
    assert ModelCard(card.render(card_record(cell, "me/x"))).data.base_model is None
    with pytest.raises(InputError, match=r"1 teacher repositories.*2, of teacher-a0\.1-s0 \+"):
        card_record(cell, "me/x", teacher_repo="me/a")


def test_a_published_study_gives_an_ensembles_student_each_members_repository(ensemble: Path) -> None:
    uploads = {upload.repo_id: upload for upload in study_uploads(ensemble, "me/x", None)}
    bases = {name: ModelCard(uploads[f"me/x-{name}"].files["README.md"].decode()).data.base_model
             for name in (SEED_1, "student-a0.1-T1-s1")}  # fmt: skip
    assert bases == {SEED_1: [f"me/x-{name}" for name in MEMBERS], "student-a0.1-T1-s1": "me/x-teacher-a0.1-s1"}


def test_a_card_says_how_many_students_shared_the_time_and_the_memory(seeds: Path) -> None:
    record = card_record(seeds / "cells" / SEED_1, "me/x")
    assert "trained together" not in card.render({**record, "lockstep": 1})
    text = card.render({**record, "lockstep": 73})
    assert "It was one of 73 students that were trained together" in text
    assert unknown_numbers(text, json.loads(json.dumps({**record, "lockstep": 73}))) == []
    assert unknown_numbers(text, json.loads(json.dumps(record))) == ["73"]


# ---- Words


def student(**values: Any) -> dict[str, Any]:
    base = {"status": "complete", "role": "student", "name": "n", "label_smoothing": 0.1, "temperature": 4.0, "kd_weight": 1.0,
            "kd_loss_scale": 1.0, "scale_student": True, "student": "s", "student_label_smoothing": 0.0, "kd_top_k": None,
            "metrics": {"top1": 50.0}}  # fmt: skip
    return {**base, **values}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "T²·KL(softmax(teacher/T) ‖ softmax(student/T)), T = 4; no hard-label term"),
        ({"scale_student": False}, "‖ softmax(student)), T = 4"),
        ({"kd_weight": 0.9, "student_label_smoothing": 0.2}, "labels smoothed by 0.2; W = 0.9"),
        ({"kd_weight": 0.0}, "| loss | cross-entropy with the labels |"),
        ({"kd_top_k": 8}, "the teacher's 8 most probable classes"),
        ({"kd_loss_scale": "equalised", "kd_loss_scale_value": 8.49}, "times 1/g = 8.49"),
        ({"kd_loss_scale": 3.0}, "times 3;"),
    ],
)
def test_the_loss_is_said_in_words(values: dict[str, Any], words: str) -> None:
    assert words in card.render(student(**values))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-3.0, -1.0, "**is against it**"), (-1.0, 1.0, "cannot be told from none"), (1.0, 3.0, "is in its favour")],
)
def test_a_difference_is_called_what_its_interval_allows(low: float, high: float, words: str) -> None:
    estimate = {"value": (low + high) / 2, "low": low, "high": high, "kind": "examples"}
    other = {"name": "t", "metrics": {}, "score": {"value": 50.0}, "difference": estimate}
    text = card.render(student(card={"metric": "top1", "teacher": other, "level": 95, "score": {"value": 50.0}}))
    assert words in text


def test_data_of_the_users_own_have_no_licence_of_ours() -> None:
    recipe = {"task": "image_classification", "data": {"source": "dataset", "name": "me/birds"},
              "teacher": {"model": "timm/resnet50.a1_in1k", "pretrained": True}, "students": []}  # fmt: skip
    data = ModelCard(card.render(student(recipe=recipe, study={"name": "b"}))).data
    assert (data.license, data.datasets) == ("unknown", ["me/birds"])
    assert data.base_model == "timm/resnet50.a1_in1k"
    local = {**recipe, "data": {"source": "dataset", "name": "/data/birds"}}
    assert ModelCard(card.render(student(recipe=local, study={"name": "b"}))).data.datasets is None


def test_an_unfinished_cell_has_no_card() -> None:
    with pytest.raises(InputError, match="out of memory"):
        card.render(student(status="failed", error={"message": "out of memory"}))


EXPORT = {
    "format": "onnx",
    "int8": True,
    "metrics": {"top1": {"before": 94.375, "after": 94.25}},
    "size_bytes": {"before": 963844, "after": 443035},
    "latency_ms": {"batch": 1, "before": {"median": 1.7032}, "after": {"median": 0.2266}},
    "versions": {"onnx": "1.2.3"},
}


def exported(cell: Path, folder: Path) -> Path:
    folder.mkdir()
    source = {"name": cell.name, "record_sha256": file_sha256(cell / "record.json")}
    (folder / "export.json").write_text(json.dumps({**EXPORT, "source": source}))
    return folder


def test_an_exports_figures_stand_in_the_card(ensemble: Path, tmp_path: Path) -> None:
    cell = ensemble / "cells" / SEED_1
    upload = cell_upload(cell, "me/student", None, None, [exported(cell, tmp_path / "onnx")])
    text, record = (upload.files[name].decode() for name in ("README.md", "record.json"))  # type: ignore[union-attr]
    assert "| onnx, int8 | 94.4 | 94.2 | 963844 | 443035 | 1.70 | 0.23 |" in text
    assert unknown_numbers(text, json.loads(record)) == []
    assert "Elsewhere" not in cell_upload(cell, "me/student", None, None).files["README.md"].decode()  # type: ignore[union-attr]


def test_an_export_of_another_cell_is_refused(ensemble: Path, tmp_path: Path) -> None:
    cell = ensemble / "cells" / SEED_1
    other = exported(ensemble / "cells" / MEMBERS[0], tmp_path / "onnx")
    with pytest.raises(InputError, match=r"is of another cell .*hf-lskd export"):
        exports_of(cell, [other])
    with pytest.raises(InputError, match=r"no export\.json of ours"):
        exports_of(cell, [tmp_path])
