"""What the README and the pages beside it show is run: each Python snippet, each recipe, each command's options, each link."""

import gc
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_lskd import DistillationTrainer
from hf_lskd.cli import build_parser
from hf_lskd.data.tokenizer import train_bpe
from hf_lskd.models.sequence import load_seq2seq
from hf_lskd.recipe import parse_recipe
from tests.conftest import Examples
from tests.pages import ROOT, blocks, run_snippet

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
SNIPPETS = {page: blocks(page, "python") for page in ("README.md", "docs/use.md")}  # export.md's: in test_export.py
SEARCHED = (1.0, 2.0, 64.0)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader has at hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    return {
        "timm": timm,
        "train_dataset": Examples(40, classes=10, size=32),
        "eval_dataset": Examples(20, seed=1, classes=10, size=32),
        "collate_fn": torch.utils.data.default_collate,
        "compute_metrics": lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
        "teacher": timm.create_model("test_byobnet", num_classes=10),
        "student": timm.create_model("test_resnet", num_classes=10),
        "seq2seq_folder": str(tmp_path / "model"),
        "checkpoint": str(tmp_path / "vit"),
        "pictures": str(tmp_path / "pictures"),
        "processor": ViTImageProcessor(size={"height": 32, "width": 32}),
        "train_pairs": [{"input_ids": [3, 4, 1], "labels": [5, 1]}, {"input_ids": [3, 1], "labels": [4, 3, 1]}] * 3,
        "teacher_logits": torch.randn(6, 10),
        "student_logits": torch.randn(6, 10, requires_grad=True),
        "labels": torch.arange(6),
        "features_at_t1": torch.randn(40, 64),
        "features_at_t2": torch.randn(40, 64),
    }


def write_files(snippet: str, folder: Path) -> None:
    """The models and pictures that a snippet reads."""
    if "seq2seq_folder" in snippet:
        write_seq2seq(folder / "model")
    if "checkpoint" in snippet:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=16, num_labels=10)).save_pretrained(
            folder / "vit"
        )
    if "pictures" in snippet:
        write_pictures(folder / "pictures")


def write_seq2seq(folder: Path) -> None:
    """A model and its tokenizer, as a user has them."""
    tokenizer = train_bpe(["a house", "ein Haus"], 30)
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
             "encoder_attention_heads": 2, "decoder_attention_heads": 2}  # fmt: skip
    load_seq2seq("marian", tokenizer=tokenizer, model_args=shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_pictures(folder: Path) -> None:
    """train/<class>/<n>.png: ten classes, four pictures each."""
    draw = np.random.RandomState(0)
    for label in range(10):
        (folder / "train" / f"class{label}").mkdir(parents=True)
        for n in range(4):
            pixels = draw.randint(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "train" / f"class{label}" / f"{n}.png")


@pytest.mark.parametrize("snippet", SNIPPETS["README.md"], ids=lambda s: s.splitlines()[0])
def test_each_snippet_runs(snippet: str, names: dict[str, Any], tmp_path: Path) -> None:
    write_files(snippet, tmp_path)
    if "features_at_t1" in snippet:
        names["labels"] = torch.arange(40) % 10
    del names["teacher"], names["student"]  # the page makes its own
    run_snippet(snippet, "README.md", names)
    if "save_model" in snippet:
        assert timm.create_model("local-dir:runs/student/final", pretrained=True).num_classes == 10


def left_by(heading: str, names: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The names after the one snippet of docs/use.md under a heading."""
    text = (ROOT / "docs/use.md").read_text(encoding="utf-8")
    (part,) = [part for part in text.split("\n## ")[1:] if part.startswith(heading)]
    (snippet,) = re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL)
    write_files(snippet, folder)
    return run_snippet(snippet, "docs/use.md", names)


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_an_existing_script_distils_with_two_names_changed(names: dict[str, Any], tmp_path: Path) -> None:
    trainer = left_by("An existing script", names, tmp_path)["trainer"]
    assert logged(trainer, "eval_accuracy")
    assert trainer.teacher is not None


def test_a_lora_student_trains_its_adapters_alone_and_merges(names: dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel

    pixels = torch.stack([names["eval_dataset"][i]["pixel_values"] for i in range(4)])
    left_by("A LoRA student", names, tmp_path)
    start = AutoModelForImageClassification.from_pretrained(tmp_path / "vit").eval()
    merged = AutoModelForImageClassification.from_pretrained("runs/lora/merged").eval()
    changed = {k for k, v in merged.state_dict().items() if not torch.equal(v, start.state_dict()[k])}
    assert {key.split(".")[-2] for key in changed} == {"q_proj", "v_proj", "classifier"}
    assert not list(Path("runs/lora/adapter").glob("model*"))
    adapted = PeftModel.from_pretrained(start, "runs/lora/adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(pixel_values=pixels).logits, merged(pixel_values=pixels).logits)


def test_our_readings_reach_tensorboard(names: dict[str, Any], tmp_path: Path) -> None:
    left = left_by("Logs: report_to", names, tmp_path)
    found = set(left["events"].Tags()["scalars"])
    assert {f"train/{name}" for name in ("hard_loss", "soft_loss", "target_entropy", "agreement")} <= found
    assert "eval/nll" in found


def test_metrics_are_sacrebleus(names: dict[str, Any], tmp_path: Path) -> None:
    import sacrebleu

    left = left_by("The metrics alone", names, tmp_path)
    found = left["bleu"].compute(predictions=left["one"], references=left["references"])
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(left["one"], [left["references"]]).score)


def test_a_search_tries_each_temperature_and_judges_the_teacher_once(
    names: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stock search drops its model between trials: the second one must find a teacher all the same."""
    trials: list[float] = []
    stock = DistillationTrainer.evaluate

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        trials.append(self.args.kd_temperature)
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "evaluate", noted)
    gc.freeze()  # accelerate collects garbage after each trial, most of a second among all that is imported here
    try:
        with caplog.at_level("INFO", "hf_lskd.teacher_accuracy"):
            best = left_by("A search over T", names, tmp_path)["best"]
    finally:
        gc.unfreeze()
    assert sorted(set(trials)) == sorted(SEARCHED)
    assert best.hyperparameters["kd_temperature"] in SEARCHED
    assert sum(record.getMessage().startswith("Teacher: top-1") for record in caplog.records) == 1


def test_a_stream_is_distilled_for_max_steps(names: dict[str, Any], tmp_path: Path) -> None:
    trainer = left_by("A streaming data set", names, tmp_path)["trainer"]
    assert trainer.state.global_step == 4
    assert int(trainer.class_statistics().count.sum()) == 40


def test_there_are_snippets_for_trainer_loss_and_eta() -> None:
    assert len(SNIPPETS["README.md"]) == 4
    assert len(SNIPPETS["docs/use.md"]) == 6  # each has its test above


@pytest.mark.parametrize("recipe", blocks("README.md", "yaml"))
def test_each_recipe_is_valid(recipe: str) -> None:
    assert parse_recipe(recipe, "README.md").students


def commands(page: str) -> list[str]:
    """The commands of a page: in back ticks, and as the lines of a block, fenced or indented."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line.split("  #")[0] for line in re.findall(r"^(?:    )?(hf-lskd .*)$", text, flags=re.MULTILINE)]
    return [line.strip() for line in (*re.findall(r"`(hf-lskd [^`]+)`", text), *lines)]


@pytest.mark.parametrize("page", PAGES)
def test_each_command_is_one_of_ours_and_takes_these_options(page: str) -> None:
    """RECIPE and N stand for any; a command alone is one that the page speaks of; what training takes may follow `train`."""
    parser, known = build_parser()
    for text in commands(page):
        words = shlex.split(re.sub(r"\bRECIPE\b…?", "recipe.yaml", re.sub(r"\bN\b", "2", text)).replace("…", ""))[1:]
        assert words[0] in (*known, "--help"), text
        if len(words) > 1:
            _, rest = parser.parse_known_args(words)
            assert not rest or words[0] == "train", text


def test_the_pages_show_commands() -> None:
    assert {page for page in PAGES if len(commands(page)) >= 3} >= {
        "README.md",
        "docs/convert.md",
        "docs/export.md",
        "docs/launch.md",
    }


@pytest.mark.parametrize("page", PAGES)
def test_each_target_of_make_is_in_the_makefile(page: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = re.findall(r"(?:`|^ *)make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(named) <= set(targets)


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_to_a_file(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    assert links or page in ("docs/bench.md", "docs/convert.md", "docs/export.md")
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
