"""A checkpoint that would touch a file when it is opened: refused by every reader of weights in the product, and nothing was run."""

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lskd.cli import main
from hf_lskd.errors import InputError
from hf_lskd.hub.from_fairseq import convert_fairseq
from hf_lskd.hub.from_timm import convert_timm
from hf_lskd.hub.from_torchvision import convert_torchvision
from hf_lskd.models import load_image_classifier, load_trained
from hf_lskd.models.sequence import load_seq2seq, load_trained_seq2seq
from hf_lskd.models.timm_weights import read_state
from hf_lskd.models.weights_file import read_checkpoint, weights_in
from tests.tiny_fairseq import dictionaries
from tests.tiny_seq2seq import Rows, arguments, tiny_seq2seq, tokenizer, trainer


class Intruder:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


class ByState(Intruder):
    """The same by way of an allowed class: its state is the intruder."""

    def __reduce__(self) -> tuple:
        return argparse.Namespace, (), {"arch": Intruder(self.mark)}


WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "zip": torch.save,
    "legacy": lambda what, path: torch.save(what, path, _use_new_zipfile_serialization=False),
    "plain pickle": lambda what, path: path.write_bytes(pickle.dumps(what)),
}


def hostile(kind: str, trick: type[Intruder], folder: Path) -> tuple[Path, Path]:
    """(checkpoint, the file that it would make)."""
    mark, path = folder / "mark", folder / "model.pt"
    WRITERS[kind]({"model": {"fc.weight": torch.zeros(2)}, "cfg": trick(mark), "arch": "resnet18"}, path)
    return path, mark


def transformers_folder(path: Path, folder: Path) -> str:
    """A model's folder whose weights are the hostile file."""
    tiny_seq2seq().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(path.read_bytes())
    return str(folder)


def image_folder(path: Path, folder: Path) -> str:
    load_image_classifier("test_resnet", pretrained=False, class_names=["a", "b"]).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(path.read_bytes())
    return str(folder)


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "read_checkpoint": lambda path, new: read_checkpoint(path),
    "read_state": lambda path, new: read_state(path),
    "convert torchvision": lambda path, new: convert_torchvision(path, new),
    "convert timm": lambda path, new: convert_timm(path, new, architecture="resnet18"),
    "convert fairseq": lambda path, new: convert_fairseq(path, new),
    "load_image_classifier, file": lambda path, new: load_image_classifier("test_resnet", pretrained=str(path)),
    "load_image_classifier, folder": lambda path, new: load_image_classifier(image_folder(path, new)),
    "load_trained": lambda path, new: load_trained(image_folder(path, new)),
    "load_seq2seq": lambda path, new: load_seq2seq(transformers_folder(path, new)),
    "load_seq2seq, pretrained": lambda path, new: load_seq2seq("marian", pretrained=transformers_folder(path, new)),
    "load_trained_seq2seq": lambda path, new: load_trained_seq2seq(transformers_folder(path, new)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_trap_works(kind: str, tmp_path: Path) -> None:
    for trick in (Intruder, ByState):
        path, mark = hostile(kind, trick, tmp_path)
        assert not mark.exists()
        if kind == "plain pickle":
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
        assert mark.exists()
        mark.unlink()


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_runs_what_a_checkpoint_brings(reader: str, tmp_path: Path) -> None:
    for number, kind in enumerate(WRITERS):
        for trick in (Intruder, ByState):
            path, mark = hostile(kind, trick, tmp_path)
            with pytest.raises(InputError):
                READERS[reader](path, tmp_path / f"new{number}{trick.__name__}")
            assert not mark.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_the_message_names_the_code_and_the_command_stops(kind: str, tmp_path: Path, capsys: Any) -> None:
    dictionaries(tmp_path)
    path, mark = hostile(kind, Intruder, tmp_path)
    for source in ("torchvision", "timm", "fairseq"):
        assert main(["convert", source, str(path), str(tmp_path / "new")]) == 2
        said = capsys.readouterr().err
        assert "without running code" in said
        assert "it names getattr; nothing was run" in said  # by which a pickle reaches a method
        assert not (tmp_path / "new").exists()
    assert not mark.exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt"])
def test_a_resumed_run_does_not_open_a_hostile_state(file: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", save_steps=1, num_train_epochs=2)
    trainer(tiny_seq2seq(), args, Rows(), processing_class=tokenizer()).train()
    path, mark = hostile("zip", Intruder, tmp_path)
    (tmp_path / "checkpoint-1" / file).write_bytes(path.read_bytes())
    again = trainer(tiny_seq2seq(), args, Rows(), processing_class=tokenizer())
    with pytest.raises(pickle.UnpicklingError, match="GLOBAL"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert not mark.exists()


def test_plain_checkpoints_are_read_whatever_wrapped_them(tmp_path: Path) -> None:
    weights = {"module._orig_mod.fc.weight": torch.ones(2), "_orig_mod.module.fc.bias": torch.zeros(2)}
    for number, whole in enumerate(
        ({"state_dict": weights, "args": argparse.Namespace(lr=0.1)}, weights, {"model": weights, "epoch": 1})
    ):
        torch.save(whole, tmp_path / f"{number}.pth")
        found = weights_in(read_checkpoint(tmp_path / f"{number}.pth"), tmp_path)
        assert {key: value.tolist() for key, value in found.items()} == {"fc.weight": [1, 1], "fc.bias": [0, 0]}


def test_a_namespace_is_allowed_for_the_one_reader_only(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt")["args"].lr == 0.1
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)


@pytest.mark.parametrize("protocol", [4, 5])
def test_the_refusal_of_a_pickle_comes_alone(protocol: int, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps({"model": Intruder(tmp_path / "mark")}, protocol=protocol))
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(path)
    assert [str(one.message) for one in recwarn] == []
    assert not (tmp_path / "mark").exists()
