"""Checkpoints of torchvision and timm as models of ours: the same logits, the paper's own format, and every refusal."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_lskd.cli import main
from hf_lskd.errors import InputError
from hf_lskd.hub.conversion import fresh_folder
from hf_lskd.hub.from_timm import convert_timm
from hf_lskd.hub.from_torchvision import both_models, convert_torchvision
from hf_lskd.hub.torchvision_names import TIMM_NAMES, nearest_by_weights, paired_names, renamed

CLASSES = 5
OF_THE_PAPER = ("resnet18", "resnet50", "efficientnet_b0", "mobilenet_v2", "convnext_tiny")
LIGHT, HEAVY = ("mobilenet_v2",), ("efficientnet_b0", "resnet18", "resnet50", "convnext_tiny")


def lively(model: nn.Module) -> nn.Module:
    """Batch statistics and layer scales as after training: with fresh ones a wrong epsilon would not show."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    for name, value in model.named_parameters():
        if "layer_scale" in name or name.endswith("gamma"):
            value.data.normal_(0, 0.5)
        elif value.ndim == 1:
            value.data.add_(0.1 * torch.randn_like(value))
    return model.eval()


def random_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return lively(torchvision.models.get_model(name, weights=None, num_classes=CLASSES))


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model: Any, size: int = 64) -> Tensor:
    found = model.eval()(images(size))
    return getattr(found, "logits", found)


def saved(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def papers_checkpoint(model: nn.Module, arch: str, path: Path) -> Path:
    """As torch's ImageNet example writes it, which the paper's code is made from: DataParallel's names, and all the rest."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    model(images())[0].sum().backward()
    optimizer.step()
    whole = {
        "epoch": 90, "arch": arch, "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()},
        "best_acc1": torch.tensor(76.1), "optimizer": optimizer.state_dict(), "scheduler": {"last_epoch": 90},
    }  # fmt: skip
    torch.save(whole, path)
    return path


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_timms_twin_says_the_same_and_is_told_by_the_weights(name: str) -> None:
    model = random_model(name)
    _, twin = both_models(name, CLASSES)
    twin.load_state_dict(renamed(model.state_dict(), paired_names(model, twin), twin.state_dict()))
    wanted = logits(model)
    assert wanted.abs().max() > 1e-2
    torch.testing.assert_close(logits(twin), wanted, rtol=1e-5, atol=1e-5)
    assert nearest_by_weights(model.state_dict()) == (name, 1)


@pytest.mark.parametrize("name", [*LIGHT, *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVY)])
def test_logits_are_torchvisions_in_both_libraries_and_the_way_back(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    wanted = logits(model)
    assert wanted.abs().max() > 1e-2
    found = convert_torchvision(saved(model, tmp_path / "w.pth"), tmp_path / "ours")
    assert found.architecture == f"{name}, timm's {TIMM_NAMES[name]}"
    for read in (
        AutoModelForImageClassification.from_pretrained(tmp_path / "ours"),
        timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True),
    ):
        torch.testing.assert_close(logits(read), wanted, rtol=1e-5, atol=1e-5)
    convert_timm(tmp_path / "ours", tmp_path / "back", output_format="torchvision")
    back = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    back.load_state_dict(torch.load(tmp_path / "back" / f"{name}.pth", weights_only=True))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in back.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TIMM_NAMES) - set(OF_THE_PAPER)))
def test_the_rest_of_the_table_agrees_too(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    convert_torchvision(saved(model, tmp_path / "w.pth"), tmp_path / "ours")
    read = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True)
    wanted = logits(model)
    assert (logits(read) - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_a_checkpoint_of_the_papers_code_loads_with_its_preparation(tmp_path: Path, capsys: Any) -> None:
    model = random_model("mobilenet_v2")
    source = papers_checkpoint(model, "mobilenet_v2", tmp_path / "model_best.pth.tar")
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    target = tmp_path / "ours"
    words = ["convert", "torchvision", str(source), str(target), "--class-names", str(tmp_path / "names.txt")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "314 of 314 weights used" in said
    assert "bit-equal" in said
    wanted = logits(model.eval())
    read = AutoModelForImageClassification.from_pretrained(target)
    torch.testing.assert_close(logits(read), wanted, rtol=1e-5, atol=1e-5)
    assert read.config.id2label == dict(enumerate("abcde"))
    prepared = read.config.pretrained_cfg
    assert (prepared["input_size"], prepared["crop_pct"], prepared["interpolation"]) == (
        [3, 224, 224],
        0.875,
        "bilinear",
    )
    processor = AutoImageProcessor.from_pretrained(target)
    assert processor.data_config["crop_pct"] == 0.875
    record = json.loads((target / "conversion.json").read_text())
    assert record["source"] == "model_best.pth.tar"
    assert record["sha256"].keys() == {"model_best.pth.tar"}
    assert str(tmp_path) not in json.dumps(record)


def test_weights_that_almost_fit_are_compared_with_the_nearest_architecture(tmp_path: Path) -> None:
    state = random_model("resnet34").state_dict()
    del state["layer3.0.conv1.weight"]
    state["layer3.0.conv1.weights"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError) as caught:
        convert_torchvision(tmp_path / "w.pth", tmp_path / "ours")
    said = "do not fit torchvision's resnet34, the nearest architecture: 1 missing: layer3.0.conv1.weight; 1 unknown: layer3"
    assert said in str(caught.value)
    state = {key: value for key, value in random_model("mobilenet_v2").state_dict().items() if "classifier" not in key}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=r"mobilenet_v2, the nearest.*2 missing: classifier.1.bias, classifier.1.weight"
    ):
        convert_torchvision(tmp_path / "w.pth", tmp_path / "headless")


def test_a_timm_training_checkpoint_gives_its_averaged_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, averaged = (timm.create_model("test_resnet", num_classes=3, in_chans=1) for _ in range(2))
    args = argparse.Namespace(model="test_resnet", in_chans=1, model_kwargs={}, mean=[0.5], std=[0.25], img_size=None)
    whole = {
        "epoch": 3, "arch": "test_resnet", "args": args, "state_dict": plain.state_dict(),
        "state_dict_ema": {f"module.{key}": value for key, value in averaged.state_dict().items()},
    }  # fmt: skip
    torch.save(whole, tmp_path / "last.pth.tar")
    convert_timm(tmp_path / "last.pth.tar", tmp_path / "ours")
    read = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    grey = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(read.eval()(grey).logits, averaged.eval()(grey))
        assert not torch.allclose(plain.eval()(grey), averaged(grey), atol=1e-3)
    assert list(read.config.pretrained_cfg["mean"]) == [0.5]


def test_timm_weights_alone_need_the_architecture(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=3)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="--architecture"):
        convert_timm(tmp_path / "w.safetensors", tmp_path / "ours")
    found = convert_timm(tmp_path / "w.safetensors", tmp_path / "ours", architecture="test_vit")
    assert found.checks["weights"].startswith(f"{len(model.state_dict())} of ")
    with pytest.raises(InputError, match=r"num_classes.*It follows from the weights\."):
        convert_timm(tmp_path / "w.safetensors", tmp_path / "x", architecture="test_vit", model_args={"num_classes": 4})
    with pytest.raises(InputError, match="test_vit"):  # torchvision has no such model
        convert_timm(tmp_path / "ours", tmp_path / "x", output_format="torchvision")


def refusal(source: Path, target: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        convert_torchvision(source, target, **options)
    assert caught.value.allowed
    assert not target.exists()
    assert not list(target.parent.glob(f".{target.name}*"))
    return str(caught.value)


def test_what_does_not_fit_is_listed_and_leaves_nothing(tmp_path: Path) -> None:
    state = random_model("mobilenet_v2").state_dict()
    target = tmp_path / "ours"

    def of(changed: dict[str, Any], **options: Any) -> str:
        torch.save(changed, tmp_path / "w.pth")
        return refusal(tmp_path / "w.pth", target, **options)

    lacking = {key: value for key, value in state.items() if key != "features.2.conv.0.1.bias"}
    assert "1 missing: features.2.conv.0.1.bias" in of(lacking, architecture="mobilenet_v2")
    assert "1 unknown: extra.weight" in of({**state, "extra.weight": torch.zeros(2)}, architecture="mobilenet_v2")
    wrong = of({**state, "features.0.0.weight": torch.zeros(32, 3, 7, 7)}, architecture="mobilenet_v2")
    assert "features.0.0.weight [32, 3, 7, 7] where [32, 3, 3, 3] belongs" in wrong
    assert "no architecture has weights" in of({"some.weight": torch.zeros(2, 2)})
    message = of(state, architecture="resnet18")
    assert "122 missing: bn1.bias" in message
    assert "314 unknown: classifier.1.bias" in message
    assert "Did you mean 'resnet18'" in of(state, architecture="resnet81")
    assert "2 class names for 5" in of(state, class_names=["a", "b"])
    assert "NaN" in of({**state, "classifier.1.bias": torch.full((CLASSES,), torch.nan)})
    assert "no state dict" in of({"epoch": 3})
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal(tmp_path / "cut.pth", target)
    assert "is no file" in refusal(tmp_path / "nowhere.pth", target)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["torchvision", "SOURCE", "FULL"], "not empty"),
        (["torchvision", "SOURCE", "FILE"], "is a file"),
        (["torchvision", "NOWHERE", "NEW"], "does not exist"),
        (["torchvision", "SOURCE", "NEW", "--bpe-codes", "x"], "with fairseq only"),
        (["fairseq", "SOURCE", "NEW", "--architecture", "x"], "with torchvision and timm only"),
        (["timm", "SOURCE", "NEW", "--model-args", "in_chans"], "KEY=VALUE"),
        (["torchvision", "SOURCE", "NEW", "--class-names", "NOWHERE"], "cannot be read"),
    ],
)
def test_the_command_refuses_before_it_reads(words: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "kept.txt").write_text("kept")
    for name in ("FILE", "SOURCE"):
        (tmp_path / name).write_text("no checkpoint")
    places = [str(tmp_path / word) if word.isupper() else word for word in words]
    assert main(["convert", *places]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "FULL" / "kept.txt").read_text() == "kept"


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(InputError, match=r"/proc/x cannot be made .*Choose another DIR"), fresh_folder(Path("/proc/x")):
        pass
