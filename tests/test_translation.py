"""A translation study from end to end, on a toy language whose right translations are known."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_lskd.cli import main
from hf_lskd.errors import InputError
from hf_lskd.metrics import score_translations
from hf_lskd.recipe import Recipe, parse_recipe
from hf_lskd.record import TRANSLATIONS
from hf_lskd.study.runner import run_study
from hf_lskd.tasks import open_task
from hf_lskd.tasks.translation import TRAINING_TRANSLATIONS

WORDS = {"red": "rot", "green": "grün", "house": "Haus", "tree": "Baum", "big": "groß", "small": "klein", "two": "zwei",
         "three": "drei", "see": "sehe", "hear": "höre", "old": "alt", "new": "neu"}  # fmt: skip
SHAPE = "{d_model: 16, encoder_layers: 1, decoder_layers: 1, encoder_ffn_dim: 32, decoder_ffn_dim: 32, encoder_attention_heads: 2, decoder_attention_heads: 2, dropout: 0.0}"  # noqa: E501


def pairs(count: int, seed: int) -> list[tuple[str, str]]:
    draw = torch.Generator().manual_seed(seed)
    english = list(WORDS)
    rows = []
    for _ in range(count):
        size = int(torch.randint(2, 6, (1,), generator=draw))
        chosen = [english[int(i)] for i in torch.randint(0, len(english), (size,), generator=draw)]
        rows.append((" ".join(chosen), " ".join(WORDS[word] for word in chosen)))
    return rows


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name, count, seed in (("train", 300, 0), ("validation", 20, 1), ("test", 30, 2)):
        lines = "".join(f"{source}\t{target}\n" for source, target in pairs(count, seed))
        (folder / f"{name}.tsv").write_text(lines, encoding="utf-8")
    return folder


def recipe_of(text: Path, steps: int = 6, students: str = "", more: str = "") -> Recipe:
    students = students or f"[{{model: marian, model_args: {SHAPE}}}]"
    return parse_recipe(f"""
name: toy
task: translation
data: {{source: text, source_lang: en, target_lang: de, train: {text}/train.tsv, validation: {text}/validation.tsv,
       test: {text}/test.tsv, vocab_size: 80, max_length: 40}}
training: {{max_tokens: 64, max_steps: {steps}, learning_rate: 0.01, eval_strategy: steps, eval_steps: 3,
           logging_strategy: steps, logging_steps: 2}}
teacher: {{model: marian, model_args: {SHAPE}}}
students: {students}
grid: {{label_smoothing: [0.0, 0.1], temperature: [1, 64]}}
eta: {{min_count: 3, dissimilar: 5}}
decoding: {{beams: 1}}
{more}
""")


@pytest.fixture(scope="module")
def study(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "toy"
    records = run_study(recipe_of(text), folder)
    assert [record["status"] for record in records] == ["complete"] * 6
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_study_has_its_tables_and_its_page(study: Path) -> None:
    results = rows_of(study / "results.csv")
    assert [row["role"] for row in results] == ["teacher", "student", "student"] * 2
    for row in results:
        assert 0 <= float(row["bleu"]) <= 100
        assert float(row["nll"]) > 0
        assert row["top1"] == ""
        assert row["best_nll"]
    for row in results:
        assert bool(row["target_gradient"]) == (row["role"] == "student")
    assert {row["split"] for row in rows_of(study / "eta.csv")} == {"train", "validation"}
    assert "BLEU" in (study / "report.html").read_text(encoding="utf-8")


def test_a_records_scores_are_those_of_its_translations(study: Path, text: Path) -> None:
    cell = study / "cells" / "student-a0.1-T64-s0"
    record = json.loads((cell / "record.json").read_text())
    lines = [json.loads(line) for line in (cell / TRANSLATIONS).read_text(encoding="utf-8").splitlines()]
    assert [(line["source"], line["target"]) for line in lines] == pairs(30, 2)
    score = score_translations([x["translation"] for x in lines], [x["target"] for x in lines], target_lang="de")
    assert record["metrics"]["bleu"] == score.bleu
    assert record["metrics"]["chrf"] == score.chrf
    assert record["translation"]["bleu_signature"] == score.bleu_signature
    assert record["translation"]["split"] == "test"
    copy = score_translations([x["source"] for x in lines], [x["target"] for x in lines], target_lang="de")
    assert record["translation"]["copy"] == {"bleu": copy.bleu, "chrf": copy.chrf}


def test_statistics_count_each_target_token_once(study: Path, text: Path) -> None:
    task = open_task(recipe_of(text))
    tensors = load_file(study / "cells" / "teacher-a0-s0" / "statistics.safetensors")
    for split in ("train", "validation"):
        rows = task.rows[split]  # type: ignore[attr-defined]
        wanted = torch.bincount(
            torch.tensor([token for _, target in rows.rows for token in target]), minlength=len(task.class_names)
        )
        assert torch.equal(tensors[f"{split}.count"], wanted)


def test_a_second_run_does_nothing(study: Path, text: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.glob("cells/*/*")}
    tables = (study / "results.csv").read_bytes(), (study / "eta.csv").read_bytes()
    run_study(recipe_of(text), study)
    assert {path: path.stat().st_mtime_ns for path in study.glob("cells/*/*")} == before
    assert ((study / "results.csv").read_bytes(), (study / "eta.csv").read_bytes()) == tables


def test_another_decoding_is_another_study(study: Path, text: Path) -> None:
    with pytest.raises(InputError, match="another study"):
        run_study(parse_recipe(recipe_of(text).to_yaml().replace("beams: 1", "beams: 2")), study)


def test_the_saved_model_loads_without_us(study: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = study / "cells" / "student-a0-T1-s0" / "model"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.pad_token_id == model.config.decoder_start_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id == model.config.vocab_size - 1
    assert model.generate(**tokenizer(["red house"], return_tensors="pt"), max_new_tokens=5).shape[0] == 1


def test_initial_weights_do_not_depend_on_alpha_or_temperature(text: Path) -> None:
    from hf_lskd.study.grid import cells

    recipe = recipe_of(text)
    task = open_task(recipe)
    built = [task.build(cell).state_dict() for cell in cells(recipe) if cell.role == "student"]
    for other in built[1:]:
        assert all(torch.equal(other[name], weight) for name, weight in built[0].items())


def test_a_student_of_the_teachers_translations_learns_what_the_teacher_says(text: Path, tmp_path: Path) -> None:
    students = f"""
  - {{name: said, model: marian, model_args: {SHAPE}, targets: teacher}}
  - {{name: both, model: marian, model_args: {SHAPE}, targets: both}}"""
    recipe = recipe_of(text, students=students)
    grid: Any = recipe.grid
    object.__setattr__(grid, "label_smoothing", (0.0,))
    records = run_study(recipe, tmp_path / "s")
    assert [record["status"] for record in records] == ["complete"] * 5
    teacher = tmp_path / "s" / "cells" / "teacher-a0-s0"
    (kept,) = teacher.glob(TRAINING_TRANSLATIONS.format(key="*"))
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert [line["source"] for line in lines] == [source for source, _ in pairs(300, 0)]
    task: Any = open_task(recipe)
    args = task.arguments(record_cell(recipe, "said"), tmp_path / "args")
    rows = task._training_rows(recipe.students[0], [teacher / "model"], args)
    said = [
        line["target"]
        for line in lines
        if line["target"].strip() and len(task.tokenizer(line["target"]).input_ids) <= 40
    ]
    assert [task.tokenizer.decode(target, skip_special_tokens=True) for _, target in rows.rows] == said
    both = task._training_rows(recipe.students[1], [teacher / "model"], args)
    assert len(both) == len(rows) + 300
    assert len(both.lengths) == len(both)


def test_translations_of_another_text_or_decoding_are_not_taken_for_these(
    text: Path, study: Path, tmp_path: Path
) -> None:
    cell = tmp_path / "teacher"
    shutil.copytree(study / "cells" / "teacher-a0-s0", cell)
    (tmp_path / "other").mkdir()
    for name in ("train", "validation", "test"):
        shutil.copy(text / f"{name}.tsv", tmp_path / "other")
    other = [line + "\n" for line in (text / "train.tsv").read_text(encoding="utf-8").splitlines()[:290]]
    (tmp_path / "other" / "train.tsv").write_text("".join(other), encoding="utf-8")
    pages = (
        recipe_of(text),
        recipe_of(tmp_path / "other"),
        parse_recipe(recipe_of(text).to_yaml().replace("beams: 1", "beams: 2")),
    )
    for page in (*pages, pages[0]):
        task: Any = open_task(page)
        said = task._said_by(cell / "model", task.arguments(record_cell(page, "student"), tmp_path / "args"))
        assert {source for source, _ in said} <= set(task.source.train.sources)
    assert len(list(cell.glob(TRAINING_TRANSLATIONS.format(key="*")))) == 3


def test_a_teacher_that_says_nothing_is_named(text: Path, study: Path, tmp_path: Path) -> None:
    cell = tmp_path / "teacher"
    shutil.copytree(study / "cells" / "teacher-a0-s0", cell)
    task: Any = open_task(recipe_of(text))
    args = task.arguments(record_cell(recipe_of(text), "student"), tmp_path / "args")
    task._said_by(cell / "model", args)
    (kept,) = cell.glob(TRAINING_TRANSLATIONS.format(key="*"))
    kept.write_text('{"source": "red", "target": " "}\n')
    with pytest.raises(InputError, match="no word for any of 1 training sentences"):
        task._said_by(cell / "model", args)


def test_changing_what_students_learn_to_say_is_another_study(text: Path, study: Path) -> None:
    taught = f"[{{model: marian, model_args: {SHAPE}, targets: teacher}}]"
    with pytest.raises(InputError, match="another study"):
        run_study(recipe_of(text, students=taught), study)


# ---- η where the text has little to say


def test_too_few_frequent_tokens_cost_eta_and_not_the_study(
    text: Path, study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(study, tmp_path / "toy"))
    few = parse_recipe(recipe_of(text).to_yaml().replace("min_count: 3", "min_count: 300"))
    run_study(few, folder)
    assert "η is left out: 0 target tokens occur 300 times in each split" in caplog.text
    assert not (folder / "eta.csv").exists()
    assert not (folder / "projections.json").exists()
    assert "BLEU" in (folder / "report.html").read_text(encoding="utf-8")
    run_study(parse_recipe(recipe_of(text).to_yaml().split("eta:")[0] + "eta: null\ndecoding: {beams: 1}\n"), folder)
    assert rows_of(folder / "results.csv")


@pytest.mark.parametrize(
    ("eta", "message"),
    [
        ("{sets: missing.json}", "eta.sets: missing.json cannot be read"),
        ("{targets: [nosuch]}", "class 'nosuch'"),
        ("{min_count: 3, dissimilar: 5, targets: [</s>]}", "eta.targets: '</s>' is too rare"),
    ],
)
def test_what_eta_names_is_checked_before_training(text: Path, tmp_path: Path, eta: str, message: str) -> None:
    page = recipe_of(text).to_yaml()
    start, rest = page.split("eta:")[0], page[page.index("projection:") :]
    with pytest.raises(InputError, match=re.escape(message)):
        run_study(parse_recipe(f"{start}eta: {eta}\n{rest}"), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("d_model: 16", "d_model: 15", "model_args of 'marian': embed_dim must be divisible by num_heads"),
        ("encoder_layers: 1", "encoder_layers: many", "model_args of 'marian': .*encoder_layers"),
        ("dropout: 0.0", "dropout: 0.0, max_position_embeddings: 4", "with 4 positions for pairs of"),
        ("target_lang: de", "target_lang: ja", r"sacrebleu's tokenizer for 'ja'.*pip install"),
        ("targets: gold", "targets: teacher", "max_tokens = 64 for student 'student', whose teacher may say 80 tokens"),
    ],
)
def test_what_would_end_a_cell_is_said_before_training(
    text: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    page = recipe_of(text, students=f"[{{model: marian, targets: gold, model_args: {SHAPE}}}]")
    values = page.to_dict()
    values["data"]["max_length"] = 80 if "targets" in new else 40
    values["students"][0].setdefault("targets", "gold")
    written = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=1000)
    assert old in written
    with pytest.raises(InputError, match=message):
        run_study(parse_recipe(written.replace(old, new)), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_pairs_that_are_too_long_are_warned_of_and_counted(
    text: Path, study: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = parse_recipe(recipe_of(text).to_yaml().replace("max_length: 40", "max_length: 10"))
    task: Any = open_task(short)
    left_out = 300 - len(task.rows["train"])
    assert 0 < left_out < 300
    assert f"{left_out} of 300 training pairs are longer than data.max_length, 10 tokens" in caplog.text
    assert task._left_out() == {"training pairs of over 10 tokens, left out": left_out}
    assert open_task(recipe_of(text))._left_out() == {}  # type: ignore[attr-defined]


def test_the_share_of_translations_that_were_cut_is_a_metric(study: Path) -> None:
    for row in rows_of(study / "results.csv"):
        assert 0 <= float(row["cut_rate"]) <= 100
    assert any(float(row["cut_rate"]) > 0 for row in rows_of(study / "results.csv"))  # untrained models do not end
    page = (study / "report.html").read_text(encoding="utf-8")
    assert "cut, %" in page


def test_embeddings_are_found_of_rare_tokens_too(study: Path, text: Path) -> None:
    task: Any = open_task(recipe_of(text))
    rows = task.rows["train"]
    counts = torch.bincount(torch.tensor([token for _, target in rows.rows for token in target]))
    often, rare = int(counts.argmax()), int(torch.where(counts > 0, counts, 10**6).argmin())
    cell = record_cell(recipe_of(text), "student")
    found = task.features(cell, study / "cells" / "student-a0-T1-s0" / "model", [often, rare], "train", 50)
    assert int((found.labels == often).sum()) == min(50, int(counts[often]))
    assert int((found.labels == rare).sum()) == min(50, int(counts[rare]))


def test_max_tokens_of_a_role_is_checked_too(text: Path, tmp_path: Path) -> None:
    students = f"[{{model: marian, model_args: {SHAPE}, training: {{max_tokens: 4}}}}]"
    with pytest.raises(InputError, match="max_tokens = 4"):
        run_study(recipe_of(text, students=students), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def record_cell(recipe: Recipe, student: str) -> Any:
    from hf_lskd.study.grid import cells

    return next(cell for cell in cells(recipe) if cell.student == student)


def test_translate_reads_a_cell_a_model_and_a_recipe_alike(study: Path, text: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("red house\ntwo big trees\n", encoding="utf-8")
    page = tmp_path / "toy.yaml"
    page.write_text(recipe_of(text).to_yaml(), encoding="utf-8")
    cell = study / "cells" / "teacher-a0-s0"
    outputs = []
    for i, model in enumerate(([str(cell)], [str(cell / "model"), "--beams", "1"], [str(page), "--study", str(study)])):
        output = tmp_path / f"out{i}.tsv"
        assert main(["translate", *model, "--input", str(source), "--output", str(output)]) == 0
        outputs.append(output.read_text(encoding="utf-8"))
    assert outputs[0] == outputs[1] == outputs[2]
    assert [line.split("\t")[0] for line in outputs[0].splitlines()] == ["red house", "two big trees"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beams", "0"], "beams"),
        (["--cell", "nobody"], "teacher-a0-s0"),
        (["--output", "out.pdf"], ".jsonl"),
        (["--input", "missing.txt"], "missing.txt"),
    ],
)
def test_bad_input_of_translate_is_one_message(
    study: Path, text: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, page = tmp_path / "in.txt", tmp_path / "toy.yaml"
    source.write_text("red\n", encoding="utf-8")
    page.write_text(recipe_of(text).to_yaml(), encoding="utf-8")
    given = {"--input": str(source), "--output": str(tmp_path / "out.tsv"), "--study": str(study)}
    given.update(dict([words]))  # type: ignore[list-item]
    assert main(["translate", str(page), *[word for pair in given.items() for word in pair]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out.tsv").exists()


def test_the_input_is_never_written_over_and_a_folder_is_no_output(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("red\n", encoding="utf-8")
    (tmp_path / "out.txt").mkdir()
    for output, message in ((source, "is the input, which would be lost"), (tmp_path / "out.txt", "is a folder")):
        words = ["--input", str(source), "--output", str(output)]
        assert main(["translate", str(study / "cells" / "teacher-a0-s0"), *words]) == 2
        assert message in capsys.readouterr().err
    assert source.read_text(encoding="utf-8") == "red\n"
    assert main(["translate", "marian", "--input", str(source), "--output", str(tmp_path / "a.txt")]) == 2
    assert "'marian' is a shape without weights. Allowed: a finished model" in capsys.readouterr().err


def test_max_tokens_below_the_longest_pair_is_refused_before_training(text: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_of(text).to_yaml().replace("max_tokens: 64", "max_tokens: 4"))
    with pytest.raises(InputError, match="max_tokens = 4"):
        run_study(recipe, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_study_with_a_given_teacher_and_its_tokenizer(study: Path, text: Path, tmp_path: Path) -> None:
    model = study / "cells" / "teacher-a0-s0" / "model"
    page = recipe_of(text).to_dict()
    page["data"]["tokenizer"] = str(model)
    page["teacher"] = {"path": {"0.0": str(model)}}
    page["grid"] |= {"label_smoothing": [0.0], "temperature": [1]}
    from hf_lskd.recipe import recipe_from_dict

    records = run_study(recipe_from_dict(page), tmp_path / "s")
    assert [record["status"] for record in records] == ["complete", "complete"]
    kept = json.loads((study / "cells" / "teacher-a0-s0" / "record.json").read_text())
    assert records[0]["metrics"]["bleu"] == kept["metrics"]["bleu"]
    # Another token map is refused with both sizes.
    page["data"] |= {"tokenizer": None, "vocab_size": 70}
    with pytest.raises(InputError, match="token"):
        run_study(recipe_from_dict(page), tmp_path / "other")


def test_a_student_refused_for_its_token_map_leaves_no_folder(
    study: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "recipe.yaml"
    page.write_text(recipe_of(text).to_yaml(), encoding="utf-8")
    teacher = str(study / "cells" / "teacher-a0-s0")
    place = tmp_path / "new" / "cells" / "student"
    words = ["--role", "student", "--teacher", teacher, "--output-dir", str(place), "--set", "data.vocab_size=70"]
    assert main(["train", str(page), *words]) == 2
    assert "token" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


def test_eta_and_report_can_be_made_again(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    eta = (copy / "eta.csv").read_bytes()
    (copy / "eta.csv").unlink()
    assert main(["eta", str(copy)]) == 0
    assert (copy / "eta.csv").read_bytes() == eta
    assert main(["report", str(copy)]) == 0
    assert main(["project", str(copy), "--classes", *target_tokens(eta)]) == 0


def target_tokens(eta: bytes) -> list[str]:
    return list(dict.fromkeys(row["target"] for row in csv.DictReader(eta.decode().splitlines())))[:3]
