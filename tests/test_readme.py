"""What the README shows is run: each Python snippet, each recipe, each command's options, each link."""

import re
import shlex
from pathlib import Path

import pytest
import timm
import torch

from hf_lskd.cli import build_parser
from hf_lskd.data.tokenizer import train_bpe
from hf_lskd.models.sequence import load_seq2seq
from hf_lskd.recipe import parse_recipe
from tests.conftest import Examples

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", blocks("python"), ids=lambda s: s.splitlines()[0])
def test_each_snippet_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    torch.manual_seed(0)
    if "seq2seq_folder" in snippet:
        write_seq2seq(tmp_path / "model")
    teacher, student = torch.randn(6, 10), torch.randn(6, 10, requires_grad=True)
    exec(  # the reader's own script, with the reader's own data
        compile(snippet, "README.md", "exec"),
        {
            "timm": timm,
            "train_dataset": Examples(40, classes=10, size=32),
            "eval_dataset": Examples(20, seed=1, classes=10, size=32),
            "seq2seq_folder": str(tmp_path / "model"),
            "train_pairs": [{"input_ids": [3, 4, 1], "labels": [5, 1]}, {"input_ids": [3, 1], "labels": [4, 3, 1]}] * 3,
            "teacher_logits": teacher,
            "student_logits": student,
            "labels": torch.arange(40) % 10 if "features_at_t1" in snippet else torch.arange(6),
            "features_at_t1": torch.randn(40, 64),
            "features_at_t2": torch.randn(40, 64),
        },
    )
    if "save_model" in snippet:
        assert timm.create_model("local-dir:runs/student/final", pretrained=True).num_classes == 10


def write_seq2seq(folder: Path) -> None:
    """A model and its tokenizer, as a user has them."""
    tokenizer = train_bpe(["a house", "ein Haus"], 30)
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
             "encoder_attention_heads": 2, "decoder_attention_heads": 2}  # fmt: skip
    load_seq2seq("marian", tokenizer=tokenizer, model_args=shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_there_are_snippets_for_trainer_loss_and_eta() -> None:
    assert len(blocks("python")) == 4


@pytest.mark.parametrize("page", blocks("yaml"))
def test_each_recipe_is_valid(page: str) -> None:
    assert parse_recipe(page, "README.md").students


def test_each_command_is_one_of_ours() -> None:
    parser, _ = build_parser()
    texts = [line.strip() for text in re.findall(r"`(hf-lskd [^`]+)`", README) for line in text.split("`, `")]
    assert len(texts) >= 4
    for text in texts:
        words = shlex.split(re.sub(r"\bRECIPE\b…?", "recipe.yaml", text).replace("…", ""))
        parser.parse_known_args(words[1:])


def test_each_link_leads_to_a_file() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
