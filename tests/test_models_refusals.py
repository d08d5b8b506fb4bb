"""Models that are refused: one clear message, and no code of a file runs."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from hf_lskd import InputError
from hf_lskd.models import (
    load_image_classifier,
    load_trained,
    pretrained_cfg,
)
from tests.conftest import CLASSES, RESNET, tiny
from tests.families import ONE_HEAD, build


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


class Intruder:
    """What a pickle could do to whoever opens it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def rejected(name: str, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_image_classifier(name, **kwargs)
    assert caught.value.allowed
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet81", "resnet18"),
        ("timm/resnet81", "resnet18"),
        ("vit_tiny_patch16", "vit_tiny_patch16_"),
        ("/no/such/resnet18", "resnet18"),
        ("timm/owner/resnet18", "resnet18"),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_unknown_names_are_answered_with_the_nearest(name: str, nearest: str, pretrained: bool) -> None:
    said = rejected(name, pretrained=pretrained)
    assert name in said
    if not name.startswith("/"):
        assert nearest in said


def test_names_that_only_the_hub_knows_say_that_it_cannot_be_reached() -> None:
    for pretrained in (True, False):
        for name in ("owner/model", "hf-hub:owner/model"):
            assert "owner/model" in rejected(name, pretrained=pretrained)
    with pytest.raises(InputError, match="runs/teacher"):
        load_trained("runs/teacher")


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    for library, model in (("timm", tiny(RESNET)), ("hf", build(ONE_HEAD["vit"]))):
        for damage, message in (
            ("truncated", "truncated|download it again"),
            ("no weights", "no weights"),
            ("no config", "config.json"),
            ("config is no JSON", "config.json"),
            ("config is a list", "config.json"),
            ("another architecture", "."),
        ):
            folder = tmp_path / f"{library} {damage}"
            model.save_pretrained(folder)
            config = folder / "config.json"
            if damage == "truncated":
                cut(folder / "model.safetensors")
            elif damage == "no weights":
                (folder / "model.safetensors").unlink()
            elif damage == "no config":
                config.unlink()
            elif damage == "config is no JSON":
                cut(config)
            elif damage == "config is a list":
                config.write_text("[1, 2]")
            else:
                own = json.loads(config.read_text())
                changed = {"architecture": "test_vit", "model_args": {}} if library == "timm" else {"hidden_size": 32}
                config.write_text(json.dumps({**own, **changed}))
            for load in (load_image_classifier, load_trained):
                with pytest.raises(InputError, match=message) as caught:
                    load(str(folder))
                assert str(folder) in str(caught.value)
                assert caught.value.allowed


def test_files_that_are_no_weights_of_the_model_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "resnet.pth")
    state = timm.create_model("test_vit", num_classes=5).state_dict()
    torch.save(state, tmp_path / "cut.pth")
    save_file(state, tmp_path / "cut.safetensors")
    for file in ("cut.pth", "cut.safetensors"):
        cut(tmp_path / file)
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.save(timm.create_model("test_vit"), tmp_path / "module.pth")
    del state["norm.weight"]
    torch.save(state, tmp_path / "lacking.pth")
    tiny(RESNET).save_pretrained(tmp_path / "folder")
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("resnet.pth", "does not fit test_vit"),
        ("cut.pth", "cannot be read"),
        ("cut.safetensors", "cannot be read"),
        ("none.pth", "no state dict"),
        ("module.pth", "state_dict"),
        ("lacking.pth", "norm.weight"),
        ("folder", "holds resnet10t, not test_vit"),
        ("empty", "no weights"),
        ("nowhere", "does not exist"),
    ):
        for names in (CLASSES, ["a", "b"]):  # a new head must not hide that the rest does not fit
            assert message in rejected("test_vit", class_names=names, pretrained=str(tmp_path / path)), path


def test_no_pickle_is_opened_that_can_run_code(tmp_path: Path) -> None:
    for kind in ("torch", "pickle"):
        mark, file = tmp_path / f"{kind}.mark", tmp_path / f"{kind}.pth"
        if kind == "torch":
            torch.save({"fc.weight": Intruder(mark)}, file)
        else:
            file.write_bytes(pickle.dumps(Intruder(mark)))
        rejected("test_resnet", pretrained=str(file))
        folder = tmp_path / kind
        tiny(RESNET).save_pretrained(folder)
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(file.read_bytes())
        rejected(str(folder))
        rejected("resnet10t", pretrained=str(folder))
        with pytest.raises(InputError):
            load_trained(str(folder))
        assert not mark.exists()
    torch.load(tmp_path / "torch.pth", weights_only=False)
    assert (tmp_path / "torch.mark").exists()  # the trap works: only the way in was closed


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"depht": 3}, "depht"),
        (
            {"num_classes": 3},
            "num_classes. Allowed: arguments that shape a classifier. It follows from the weights, or class_names.",
        ),
        ({"pretrained": True}, "pretrained"),
        ({"checkpoint_path": "x"}, "checkpoint_path"),
        ({"act_layer": nn.GELU}, "act_layer"),
        ({"img_size": -3}, "img_size"),
    ],
)
def test_model_arguments_that_do_not_fit_are_refused(model_args: dict, message: str) -> None:
    assert message in rejected("test_vit", pretrained=False, model_args=model_args)


def test_weights_of_other_shapes_than_the_config_says_are_refused_not_drawn_anew(tmp_path: Path) -> None:
    build(ONE_HEAD["vit"]).save_pretrained(tmp_path)
    assert "fc1" in rejected(str(tmp_path), model_args={"intermediate_size": 24})
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "none of the weights" in rejected(str(tmp_path))


def test_the_preparation_of_a_name_is_timms_or_a_clear_refusal() -> None:
    assert (
        pretrained_cfg("timm/resnet18.a1_in1k")["mean"]
        == pretrained_cfg("resnet18.a1_in1k")["mean"]
        == (0.485, 0.456, 0.406)
    )
    for name in ("resnet81", "resnet18.no_such_tag", "hf-hub:owner/model"):
        with pytest.raises(InputError, match=name):
            pretrained_cfg(name)
    assert pretrained_cfg("owner/model") == {}
