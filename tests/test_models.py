"""What is built, saved and loaded: through transformers and through timm, without us; and what bad input is answered with."""

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, TimmWrapperConfig
from transformers import TimmWrapperForImageClassification as TimmWrapper

from hf_lskd import DistillationTrainer, InputError
from hf_lskd.models import (
    as_transformers,
    image_processor,
    load_image_classifier,
    load_trained,
    normalization_of,
    pretrained_cfg,
)
from tests.conftest import CLASSES, CONVNEXT, RESNET, VIT, Examples
from tests.families import ONE_HEAD, build

Make = Callable[..., Any]
MOBILENET = ("mobilenetv2_035", {})
SMALL = [RESNET, VIT, CONVNEXT, ("test_efficientnet", {}), ("test_byobnet", {}), MOBILENET]
OWN = {
    "input_size": (3, 32, 32),
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
}
GREY = Image.new("L", (40, 30), 100)


def pictures(side: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(3))


def logits_of(model: Any, images: torch.Tensor) -> torch.Tensor:
    """In eval mode, on a copy of the images: a model may be a wrapper or bare."""
    with torch.no_grad():
        output = model.eval()(images)
    return output if isinstance(output, torch.Tensor) else output.logits


def small(which: tuple[str, dict] = RESNET, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    name, model_args = which
    return load_image_classifier(name, class_names=CLASSES, pretrained=False, model_args=model_args, **kwargs)


def assert_loads_everywhere(folder: Path, images: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal logits through transformers and through timm, every key in its place, and images prepared as they were."""
    ours, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    torch.testing.assert_close(logits_of(ours, images), expected)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
    torch.testing.assert_close(logits_of(theirs, images), expected)


@pytest.mark.parametrize("which", SMALL, ids=[name for name, _ in SMALL])
def test_saved_models_load_through_both_libraries_and_again_after_a_second_saving(which, tmp_path: Path) -> None:
    side = 16 if which is VIT else 32
    data_config = {**OWN, "input_size": (3, side, side)}
    model, images = small(which, data_config=data_config), pictures(side)
    expected = logits_of(model, images)
    model.save_pretrained(tmp_path / "one")
    assert_loads_everywhere(tmp_path / "one", images, expected)
    again = load_image_classifier(str(tmp_path / "one"))
    again.save_pretrained(tmp_path / "two")
    assert_loads_everywhere(tmp_path / "two", images, expected)
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert list(load_trained(str(folder)).config.id2label.values()) == CLASSES
        assert sorted(load_file(folder / "model.safetensors")) == sorted(model.timm_model.state_dict())
        processor = AutoImageProcessor.from_pretrained(folder)
        assert processor(GREY.convert("RGB"))["pixel_values"].shape == (1, 3, side, side)
        white = processor(Image.new("RGB", (side, side), (255, 255, 255)))["pixel_values"]
        torch.testing.assert_close(white[0, :, 0, 0], (1 - torch.tensor(OWN["mean"])) / torch.tensor(OWN["std"]))
        assert pretrained_cfg(str(folder))["mean"] == list(OWN["mean"])


@pytest.mark.parametrize("which", [RESNET, VIT], ids=["resnet", "vit"])
def test_the_image_classification_pipeline_reads_a_grey_picture(which, tmp_path: Path) -> None:
    small(which, data_config={**OWN, "input_size": (3, 16, 16)}).save_pretrained(tmp_path)
    answers = hf.pipeline("image-classification", model=str(tmp_path))(GREY)
    assert {answer["label"] for answer in answers} == set(CLASSES)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("which", SMALL, ids=[name for name, _ in SMALL])
def test_initial_weights_are_timms_own(which) -> None:
    model = small(which)
    torch.manual_seed(0)
    name, model_args = which
    expected = timm.create_model(name, num_classes=len(CLASSES), **model_args).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.timm_model.state_dict().items())


def bare_models() -> dict[str, Callable[[], nn.Module]]:
    return {
        "by name": lambda: timm.create_model("test_byobnet", num_classes=5),
        "one channel": lambda: timm.create_model("test_resnet", num_classes=5, in_chans=1),
        "image size": lambda: timm.create_model("test_vit", num_classes=5, img_size=32),
        "both": lambda: timm.create_model("test_vit", num_classes=5, img_size=32, in_chans=1),
        "dropout": lambda: timm.create_model("test_convnext", num_classes=5, drop_rate=0.3, drop_path_rate=0.2),
    }


@pytest.mark.parametrize("kind", bare_models())
def test_bare_timm_modules_are_wrapped_and_load_from_final_folder_and_checkpoint(
    kind: str, arguments: Make, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = bare_models()[kind]()
    channels = 1 if kind in ("one channel", "both") else 3
    data = Examples(8, size=32)
    data.images = data.images[:, :channels]
    args = arguments(save_strategy="steps", save_steps=1, max_steps=1, learning_rate=0.01)
    trainer = DistillationTrainer(module, args, train_dataset=data)
    assert trainer.model.timm_model is module
    trainer.train()
    trainer.save_model(tmp_path / "final")
    images = pictures(32, channels)
    expected = logits_of(module, images)
    for folder in (tmp_path / "final", tmp_path / "trainer" / "checkpoint-1"):
        assert_loads_everywhere(folder, images, expected)
        assert normalization_of(AutoImageProcessor.from_pretrained(folder)) == normalization_of(module)


UNKNOWN_BUILDS: dict[str, Callable[[], nn.Module]] = {
    "other channels": lambda: timm.create_model(RESNET[0], num_classes=5, **RESNET[1]),
    "other heads, same shapes": lambda: timm.create_model("test_vit", num_classes=5, num_heads=4),
    "other activation, same shapes": lambda: timm.create_model("test_resnet", num_classes=5, act_layer="gelu"),
    "other pooling, same shapes": lambda: timm.create_model("test_resnet", num_classes=5, global_pool="max"),
    "other stride, same shapes": lambda: timm.create_model("test_resnet", num_classes=5, output_stride=8),
}


@pytest.mark.parametrize("kind", UNKNOWN_BUILDS)
def test_modules_of_arguments_that_timm_does_not_keep_stay_bare_and_say_so(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = UNKNOWN_BUILDS[kind]()
    with caplog.at_level(logging.INFO, logger="hf_lskd"):
        assert as_transformers(module) is module
    assert "plain state dict" in caplog.text


def test_modules_that_are_no_classifiers_of_timm_stay_as_they_are() -> None:
    for module in (nn.Linear(2, 2), timm.create_model("test_byobnet", num_classes=0)):
        assert as_transformers(module) is module


def test_a_module_read_from_a_folder_keeps_its_arguments_when_it_is_wrapped(tmp_path: Path) -> None:
    small(VIT).save_pretrained(tmp_path / "one")
    module = timm.create_model(f"local-dir:{tmp_path / 'one'}", pretrained=True)
    as_transformers(module).save_pretrained(tmp_path / "two")
    assert_loads_everywhere(tmp_path / "two", pictures(16), logits_of(module, pictures(16)))


def test_a_users_own_fresh_wrapper_is_saved_so_that_both_libraries_load_it(arguments: Make, tmp_path: Path) -> None:
    config = TimmWrapperConfig(architecture="test_vit", num_labels=5, model_args={"img_size": 32})
    model = TimmWrapper(config)
    DistillationTrainer(model, arguments(max_steps=1), train_dataset=Examples(8, size=32)).save_model(tmp_path)
    assert_loads_everywhere(tmp_path, pictures(), logits_of(model, pictures()))
    assert AutoImageProcessor.from_pretrained(tmp_path)(GREY.convert("RGB"))["pixel_values"].shape[1] == 3


HF = ["resnet", "vit", "convnext", "swin", "mobilenet_v2"]


@pytest.mark.parametrize("family", HF)
def test_transformers_own_models_load_train_and_load_again(family: str, arguments: Make, tmp_path: Path) -> None:
    model = build(ONE_HEAD[family])
    model.save_pretrained(tmp_path / "one")
    image_processor(OWN).save_pretrained(tmp_path / "one")
    torch.testing.assert_close(logits_of(load_trained(str(tmp_path / "one")), pictures()), logits_of(model, pictures()))
    student = load_image_classifier(str(tmp_path / "one"), class_names=CLASSES)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "one")
    args = arguments(max_steps=1, learning_rate=0.01)
    trainer = DistillationTrainer(student, args, train_dataset=Examples(8, size=32), processing_class=processor)
    trainer.train()
    trainer.save_model(tmp_path / "two")
    again, report = AutoModelForImageClassification.from_pretrained(tmp_path / "two", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(logits_of(again, pictures()), logits_of(student, pictures()))
    assert len(hf.pipeline("image-classification", model=str(tmp_path / "two"))(GREY)) == 5


def test_the_image_processor_prepares_pictures_as_timm_does() -> None:
    from timm.data import create_transform

    noise = torch.randint(0, 256, (40, 56, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy()).resize((300, 220), Image.Resampling.BICUBIC)
    config = {**OWN, "crop_pct": 0.875, "interpolation": "bicubic"}
    ours = image_processor(config)(picture, return_tensors="pt")["pixel_values"][0]
    theirs = create_transform(**config, is_training=False)(picture)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.02


def test_the_preparation_of_a_transformers_model_is_read_from_its_image_processor(tmp_path: Path) -> None:
    build(ONE_HEAD["vit"]).save_pretrained(tmp_path)
    assert pretrained_cfg(str(tmp_path)) == {}
    hf.ViTImageProcessor(size={"height": 48, "width": 48}, resample=2, image_mean=[0.2] * 3).save_pretrained(tmp_path)
    found = pretrained_cfg(str(tmp_path))
    assert found == {
        "input_size": (3, 48, 48),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.2,) * 3,
        "std": (0.5,) * 3,
    }


PROCESSORS: dict[str, Callable[[], Any]] = {
    "plain": lambda: hf.ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4] * 3
    ),
    "not normalised": lambda: hf.ViTImageProcessor(size={"height": 8, "width": 8}, do_normalize=False),
    "not rescaled": lambda: hf.ViTImageProcessor(size={"height": 8, "width": 8}, do_rescale=False, do_normalize=False),
    "other scale": lambda: hf.ViTImageProcessor(size={"height": 8, "width": 8}, rescale_factor=1 / 127.5),
    "efficientnet": lambda: hf.EfficientNetImageProcessor(
        size={"height": 8, "width": 8}, include_top=True, image_std=[0.4] * 3
    ),
    "efficientnet with offset": lambda: hf.EfficientNetImageProcessor(
        size={"height": 8, "width": 8}, rescale_offset=True, rescale_factor=1 / 127.5, include_top=False
    ),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_statistics_of_a_processor_are_what_it_does_to_a_pixel(kind: str) -> None:
    processor = PROCESSORS[kind]()
    found = normalization_of(processor)
    assert found is not None
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in found)
    for value in (0, 51, 255):
        seen = processor(Image.new("RGB", (8, 8), (value,) * 3), return_tensors="pt")["pixel_values"][0].float()
        torch.testing.assert_close(seen, ((value / 255 - mean) / std).expand(3, 8, 8), rtol=1e-4, atol=1e-4)


def test_statistics_that_are_not_told_are_unknown(tmp_path: Path) -> None:
    assert normalization_of(None) is None
    assert normalization_of(nn.Linear(2, 2)) is None
    assert normalization_of(build(ONE_HEAD["vit"])) is None
    assert normalization_of(hf.MobileViTImageProcessor(do_flip_channel_order=True)) is None


# ---- Weights from elsewhere


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", "training .pth", "folder", "wrapper folder"])
@pytest.mark.parametrize("classes", [5, 9])
def test_weights_come_from_a_file_or_folder_and_the_head_is_new_where_classes_differ(
    suffix: str, classes: int, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    donor = timm.create_model("test_resnet", num_classes=classes)
    path = tmp_path / "weights"
    if suffix == "folder":
        as_transformers(donor).save_pretrained(path)
    elif suffix == "wrapper folder":  # as transformers alone saves a fresh one: every key begins with timm_model.
        wrapper = TimmWrapper(TimmWrapperConfig(architecture="test_resnet", num_labels=classes))
        wrapper.timm_model = donor
        wrapper.save_pretrained(path)
        assert next(iter(load_file(path / "model.safetensors"))).startswith("timm_model.")
    elif suffix == ".safetensors":
        path = path.with_suffix(suffix)
        save_file(donor.state_dict(), path)
    else:
        path = path.with_suffix(".pth")
        torch.save(
            {"state_dict": donor.state_dict(), "epoch": 3} if suffix == "training .pth" else donor.state_dict(), path
        )
    model = load_image_classifier("test_resnet", class_names=CLASSES, pretrained=str(path))
    own = donor.state_dict()
    for key, value in model.timm_model.state_dict().items():
        head = key in ("fc.weight", "fc.bias")
        assert torch.equal(value, own[key]) if classes == 5 or not head else value.shape[0] == 5, key
    model.save_pretrained(tmp_path / "saved")
    assert_loads_everywhere(tmp_path / "saved", pictures(), logits_of(model, pictures()))


def test_a_backbone_without_head_is_given_one(tmp_path: Path) -> None:
    donor = timm.create_model("test_vit", num_classes=0)
    torch.save(donor.state_dict(), tmp_path / "backbone.pth")
    model = load_image_classifier("test_vit", class_names=CLASSES, pretrained=str(tmp_path / "backbone.pth"))
    assert torch.equal(model.timm_model.patch_embed.proj.weight, donor.patch_embed.proj.weight)
    assert model.timm_model.head.weight.shape[0] == 5


def test_a_folder_is_a_name_whose_weights_can_be_left_out_or_taken_from_elsewhere(tmp_path: Path) -> None:
    trained = small(VIT, data_config=OWN)
    nn.init.constant_(trained.timm_model.head.weight, 3.0)
    trained.save_pretrained(tmp_path / "timm")
    torch.manual_seed(0)
    fresh = load_image_classifier(str(tmp_path / "timm"), pretrained=False)
    assert not torch.equal(fresh.timm_model.head.weight, trained.timm_model.head.weight)
    assert list(fresh.config.id2label.values()) == CLASSES
    assert fresh.config.pretrained_cfg["mean"] == list(OWN["mean"])
    filled = load_image_classifier(str(tmp_path / "timm"), pretrained=str(tmp_path / "timm"))
    assert torch.equal(logits_of(filled, pictures(16)), logits_of(trained, pictures(16)))
    model = build(ONE_HEAD["vit"])
    model.save_pretrained(tmp_path / "hf")
    assert not torch.equal(
        load_image_classifier(str(tmp_path / "hf"), pretrained=False).classifier.weight, model.classifier.weight
    )
    other = load_image_classifier(str(tmp_path / "hf"), pretrained=str(tmp_path / "hf"), class_names=["a", "b"])
    assert torch.equal(other.vit.layernorm.weight, model.vit.layernorm.weight)
    assert other.classifier.weight.shape[0] == 2


def test_other_classes_give_a_folder_a_new_head_and_the_same_body(tmp_path: Path) -> None:
    for name, model in (("timm", small()), ("hf", build(ONE_HEAD["resnet"]))):
        model.save_pretrained(tmp_path / name)
        other = load_image_classifier(str(tmp_path / name), class_names=["a", "b", "c"])
        assert list(other.config.id2label.values()) == ["a", "b", "c"]
        assert logits_of(other, pictures()).shape == (2, 3)
        body = [key for key in model.state_dict() if "fc." not in key and "classifier" not in key]
        assert all(torch.equal(other.state_dict()[key], model.state_dict()[key]) for key in body)


def test_weights_stored_in_half_precision_are_trained_in_single(tmp_path: Path) -> None:
    build(ONE_HEAD["vit"]).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_image_classifier(str(tmp_path)).parameters()} == {torch.float32}


def test_model_args_reach_models_from_folders_too(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "timm")
    assert load_image_classifier(str(tmp_path / "timm"), model_args={"drop_rate": 0.4}).timm_model.drop_rate == 0.4
    build(ONE_HEAD["vit"]).save_pretrained(tmp_path / "hf")
    model = load_image_classifier(str(tmp_path / "hf"), model_args={"hidden_dropout_prob": 0.3})
    assert model.config.hidden_dropout_prob == 0.3
    with pytest.raises(InputError, match="hidden_dropout_prob"):
        load_image_classifier(str(tmp_path / "hf"), model_args={"hidden_dropout_probe": 0.3})


def test_a_working_folder_called_like_a_model_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_resnet").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_image_classifier("test_resnet", pretrained=False).config.architecture == "test_resnet"


# ---- Bad input: one clear message


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
    for library, model in (("timm", small()), ("hf", build(ONE_HEAD["vit"]))):
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
    small().save_pretrained(tmp_path / "folder")
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
        small().save_pretrained(folder)
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
