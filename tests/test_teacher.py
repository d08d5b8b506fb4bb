"""What a teacher is: frozen, on the student's device, in its own type, seeing what it was trained on, checked and refused."""

import copy
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoImageProcessor

from hf_lskd import DistillationTrainer, InputError
from hf_lskd.teacher import Member, Teacher, prepare_teacher
from tests.conftest import CLASSES, RESNET, VIT, Examples, Make, assert_same_weights, tiny, weights
from tests.families import ONE_HEAD, build

CPU = torch.device("cpu")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PICTURES = [
    Image.frombytes(
        "RGB", (16, 16), bytes(torch.randint(0, 256, (768,), generator=torch.Generator().manual_seed(i)).tolist())
    )
    for i in range(4)
]


def prepared(statistics: Any, pictures: list[Image.Image] = PICTURES) -> torch.Tensor:
    """The pictures as a data set with these (mean, std) gives them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    pixels = [
        torch.tensor(list(picture.tobytes())).view(*picture.size, 3).permute(2, 0, 1) / 255 for picture in pictures
    ]
    return (torch.stack(pixels) - mean) / std


def with_statistics(model: nn.Module, statistics: Any) -> nn.Module:
    model.config.pretrained_cfg = {**model.config.pretrained_cfg, "mean": statistics[0], "std": statistics[1]}
    return model


def teach(teacher: Any, student: nn.Module | None = None, **kwargs: Any) -> Teacher:
    return prepare_teacher(teacher, student if student is not None else tiny(seed=1), **{"device": CPU, **kwargs})


def inputs(images: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    return {"pixel_values": Examples(6).images if images is None else images}


# ---- Device and type


def test_trap_10_a_teacher_is_moved_to_the_students_device() -> None:
    one, other = tiny(seed=2), timm.create_model("test_vit", num_classes=5, img_size=16)
    assert {value.device.type for value in one.state_dict().values()} == {"cpu"}
    teacher = teach([one, other], device=torch.device("meta"), data_statistics=HALVES)
    for member in teacher.members:
        assert {value.device.type for value in member.model.state_dict().values()} == {"meta"}
    assert teacher.logits(inputs(torch.zeros(2, 3, 16, 16, device="meta"))).device.type == "meta"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_trap_10_a_teachers_own_type_is_a_copys_and_holds_under_autocast(dtype: str) -> None:
    module = tiny(RESNET, 2)
    before = weights(module)
    teacher = teach(module, dtype=dtype)
    assert teacher.members[0].model is not module
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert_same_weights(weights(module), before)
    plain = teacher.logits(inputs())
    assert plain.dtype is getattr(torch, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher.logits(inputs()), plain)
    expected = module.eval()(pixel_values=inputs()["pixel_values"]).logits
    torch.testing.assert_close(plain.float(), expected, rtol=0.1, atol=0.02)
    assert isinstance(teach(module).members[0], Member)
    assert all(
        not parameter.requires_grad for parameter in module.parameters()
    )  # without a type it is the module itself


def test_without_a_type_of_its_own_a_teacher_is_under_the_students_autocast() -> None:
    teacher = teach(tiny(seed=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert teacher.logits(inputs()).dtype is torch.bfloat16
    assert teacher.logits(inputs()).dtype is torch.float32


def test_teacher_and_student_compute_in_the_precision_of_training(arguments: Make) -> None:
    """accelerate's own autocast is around the student alone: a teacher would cost twice what was asked for."""
    args = arguments(max_steps=1, bf16=True, use_cpu=True)
    trainer = DistillationTrainer(tiny(seed=1), args, train_dataset=Examples(8), teacher_model=tiny(seed=2))
    seen: dict[str, set[torch.dtype]] = {"student": set(), "teacher": set()}
    assert trainer.teacher is not None
    trainer.teacher.reported = True
    for role, model in (("student", trainer.model), ("teacher", trainer.teacher.members[0].model)):
        head = next(module for module in reversed(list(model.modules())) if isinstance(module, torch.nn.Linear))
        head.register_forward_hook(lambda module, given, found, role=role: seen[role].add(found.dtype))
    trainer.train()
    assert seen == {"student": {torch.bfloat16}, "teacher": {torch.bfloat16}}


def test_a_teacher_in_half_precision_distils(arguments: Make) -> None:
    losses = []
    for dtype in (None, "bfloat16"):
        args = arguments(max_steps=1, teacher_dtype=dtype)
        trainer = DistillationTrainer(tiny(seed=1), args, train_dataset=Examples(8), teacher_model=tiny(RESNET, 2))
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


def test_trap_07_a_part_that_was_switched_to_training_is_switched_back() -> None:
    module = tiny(RESNET, 2)
    teacher = teach(module)
    before, expected = weights(module), teacher.logits(inputs())
    module.timm_model.layer3.train()
    assert torch.equal(teacher.logits(inputs()), expected)
    assert_same_weights(weights(module), before)


# ---- Random heads


def test_trap_11_a_path_whose_weights_are_missing_or_do_not_fit_is_refused(arguments: Make, tmp_path: Path) -> None:
    for library, model, head in (
        ("timm", tiny(RESNET, 2), "fc"),
        ("hf", build(ONE_HEAD["vit"]), "classifier"),
    ):
        model.save_pretrained(tmp_path / library)
        for damage in ("no head", "head of other classes", "body weight missing", "backbone of no head at all"):
            folder = tmp_path / f"{library} {damage}"
            shutil.copytree(tmp_path / library, folder)
            state = load_file(folder / "model.safetensors")
            if damage == "body weight missing":
                del state[next(key for key in state if "weight" in key)]
            elif damage == "head of other classes":
                state[f"{head}.weight"], state[f"{head}.bias"] = (
                    torch.zeros(7, state[f"{head}.weight"].shape[1]),
                    torch.zeros(7),
                )
            else:
                del state[f"{head}.weight"], state[f"{head}.bias"]
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
            with pytest.raises(InputError, match=str(folder)) as caught:
                DistillationTrainer(tiny(seed=1), arguments(), teacher_model=str(folder))
            assert caught.value.allowed
    with pytest.raises(InputError, match="cannot be built"):  # a timm architecture that has no weights anywhere
        DistillationTrainer(tiny(seed=1), arguments(), teacher_model="vit_tiny_patch16_224.no_such_tag")


def test_a_whole_teacher_is_taken_from_its_folder_and_says_what_it_said(arguments: Make, tmp_path: Path) -> None:
    for which in (RESNET, VIT):
        module = tiny(which, 2)
        module.save_pretrained(tmp_path / which[0])
        trainer = DistillationTrainer(tiny(seed=1), arguments(), teacher_model=str(tmp_path / which[0]))
        assert trainer.teacher is not None
        expected = module.eval()(pixel_values=inputs()["pixel_values"]).logits
        torch.testing.assert_close(trainer.teacher.logits(inputs()), expected)


# ---- What a teacher sees


def eyes(model: nn.Module) -> list[torch.Tensor]:
    """What reaches the model from now on."""
    seen: list[torch.Tensor] = []
    inner = getattr(model, "timm_model", model)
    inner.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["pixel_values"]), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("kind", ["module", "bare timm", "timm folder"])
def test_trap_12_a_timm_teacher_sees_what_its_own_preprocessing_gives(kind: str, tmp_path: Path) -> None:
    source: Any = with_statistics(tiny(RESNET, 2), IMAGENET)
    own = prepared(IMAGENET)
    if kind == "bare timm":
        source = timm.create_model("test_byobnet", num_classes=5)  # its configuration says 0.5
        own = prepared((source.pretrained_cfg["mean"], source.pretrained_cfg["std"]))
    elif kind == "timm folder":
        source.save_pretrained(tmp_path)
        source = str(tmp_path)
    data = ((0.2, 0.4, 0.6), (0.3, 0.5, 0.7))
    teacher = teach(source, data_statistics=data)
    seen = eyes(teacher.members[0].model)
    teacher.logits(inputs(prepared(data)))
    torch.testing.assert_close(seen[0], own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["path", "module from there"])
def test_trap_12_a_transformers_teacher_sees_what_the_image_processor_beside_it_gives(
    kind: str, arguments: Make, tmp_path: Path
) -> None:
    build(lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT_16))).save_pretrained(tmp_path)
    hf.ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3], image_std=[0.9, 0.8, 0.7]
    ).save_pretrained(tmp_path)
    source = str(tmp_path) if kind == "path" else hf.ViTForImageClassification.from_pretrained(tmp_path)
    pixels = prepared(IMAGENET)
    rows = [{"pixel_values": image, "labels": i} for i, image in enumerate(pixels)]
    processor = hf.ViTImageProcessor(image_mean=IMAGENET[0], image_std=IMAGENET[1])
    trainer = DistillationTrainer(
        tiny(seed=1), arguments(max_steps=1), train_dataset=rows, teacher_model=source, processing_class=processor
    )
    assert trainer.teacher is not None
    seen = eyes(trainer.teacher.members[0].model)
    trainer.train()
    expected = AutoImageProcessor.from_pretrained(tmp_path)(PICTURES, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen[-1], expected, rtol=1e-5, atol=1e-5)


VIT_16 = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 5,
}


def test_trap_12_unknown_statistics_change_nothing_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    unknown = build(lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT_16)))
    for teacher, data, who in (
        (unknown, IMAGENET, "the teacher's"),
        (with_statistics(tiny(RESNET, 2), IMAGENET), None, "the data's"),
        (unknown, None, "the data's and the teacher's"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="hf_lskd"):
            found = teach(teacher, data_statistics=data)
        assert found.members[0].renormalise is None
        lines = [record.getMessage() for record in caplog.records if record.name.startswith("hf_lskd")]
        assert len(lines) == 1
        assert lines[0].lower().startswith(f"{who} image statistics are unknown")


def test_trap_12_equal_statistics_leave_the_images_bit_for_bit(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hf_lskd"):
        teacher = teach(with_statistics(tiny(RESNET, 2), IMAGENET), data_statistics=IMAGENET)
    assert not caplog.records
    seen = eyes(teacher.members[0].model)
    images = prepared(IMAGENET)
    teacher.logits(inputs(images))
    assert torch.equal(seen[0], images)


def test_trap_12_the_change_is_made_in_single_precision_for_a_half_precision_teacher() -> None:
    data = ((0.2, 0.4, 0.6), (0.3, 0.5, 0.7))
    teacher = teach(with_statistics(tiny(RESNET, 2), IMAGENET), data_statistics=data, dtype="bfloat16")
    seen = eyes(teacher.members[0].model)
    teacher.logits(inputs(prepared(data)))
    torch.testing.assert_close(seen[0], prepared(IMAGENET).bfloat16(), rtol=0.008, atol=1e-6)  # one rounding


# ---- Ensembles


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 64.0])
def test_an_ensemble_is_the_mean_of_tempered_probabilities_each_member_with_its_own_normalisation(
    temperature: float,
) -> None:
    data = ((0.2, 0.4, 0.6), (0.3, 0.5, 0.7))
    members = [
        with_statistics(tiny(RESNET, 2), IMAGENET),
        with_statistics(tiny(VIT, 3), HALVES),
        build(lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT_16))),  # says nothing: sees the student's images
    ]
    for member in members[:2]:
        member.eval()
        for layer in member.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.5)
    teacher = teach(members, data_statistics=data)
    logits = teacher.logits(inputs(prepared(data)), temperature)
    with torch.no_grad():
        own = [
            copy.deepcopy(member).double()(pixel_values=prepared(statistics).double()).logits
            for member, statistics in zip(members, (IMAGENET, HALVES, data))
        ]
    expected = torch.stack([F.softmax(z / temperature, dim=-1) for z in own]).mean(0)
    torch.testing.assert_close(F.softmax(logits.double() / temperature, dim=-1), expected, rtol=2e-5, atol=1e-6)
    assert expected.std() > 1e-4


def test_an_ensemble_of_one_model_twice_is_that_model_and_of_extreme_logits_stays_finite() -> None:
    class Says(nn.Module):
        num_classes = 3

        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.tensor(logits))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.row.expand(len(images), -1)

    student = Says([0.0, 0.0, 0.0])
    twice = teach([Says([1.0, 2.0, 3.0]), Says([1.0, 2.0, 3.0])], student).logits(inputs(), 2.0)
    torch.testing.assert_close(F.softmax(twice / 2, -1)[0], F.softmax(torch.tensor([0.5, 1.0, 1.5]), -1))
    opposite = teach([Says([1000.0, 0.0, 0.0]), Says([0.0, 1000.0, 0.0])], student).logits(inputs(), 1.0)
    torch.testing.assert_close(F.softmax(opposite, -1)[0], torch.tensor([0.5, 0.5, 0.0]))
    assert opposite.isfinite().all()


def test_an_empty_ensemble_is_refused() -> None:
    with pytest.raises(InputError, match="empty list"):
        teach([])


# ---- Teacher and student


def test_a_teacher_that_shares_parameters_is_refused(arguments: Make) -> None:
    student = tiny(seed=1)
    module = timm.create_model("test_byobnet", num_classes=5)
    partly = tiny(seed=2)
    partly.timm_model.patch_embed = student.timm_model.patch_embed
    for teacher, pupil in (
        (student, student),
        (student.timm_model, student),
        (partly, student),
        (module, module),
        ([tiny(seed=2), student], student),
    ):
        with pytest.raises(InputError, match="share parameters"):
            DistillationTrainer(pupil, arguments(), teacher_model=teacher)
    DistillationTrainer(student, arguments(), teacher_model=copy.deepcopy(student))
    assert all(parameter.requires_grad for parameter in student.parameters())


class Named(nn.Module):
    """A classifier whose configuration is a user's own."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.head = nn.Linear(4, 5)


def test_class_names_are_compared_by_index_whatever_type_the_keys_have() -> None:
    by_int, by_text = dict(enumerate(CLASSES)), {str(i): name for i, name in enumerate(CLASSES)}
    shuffled = {str(i): CLASSES[i] for i in (3, 1, 4, 0, 2)}
    eleven = {str(i): f"class {i}" for i in range(11)}
    for one, other in ((by_int, by_text), (by_text, shuffled), (eleven, {int(k): v for k, v in eleven.items()})):
        teach(Named(id2label=one, num_labels=len(one)), Named(id2label=other, num_labels=len(other)))
    with pytest.raises(InputError, match="class 2 is 'class 2' for the teacher and 'other' for the student"):
        teach(Named(id2label=eleven, num_labels=11), Named(id2label={**eleven, "2": "other"}, num_labels=11))


def test_placeholders_are_no_names_and_counts_are_compared_in_any_case() -> None:
    placeholders = build(lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT_16)))
    teach(placeholders, tiny(seed=1))
    teach(timm.create_model("test_byobnet", num_classes=5), tiny(seed=1))
    for teacher, count in ((timm.create_model("test_byobnet", num_classes=9), 9), (nn.Linear(4, 7), 7)):
        with pytest.raises(InputError, match=f"teacher of {count} classes for a student of 5"):
            teach(teacher, tiny(seed=1))
    with pytest.raises(InputError, match="teacher of 4 classes for a student of 5"):
        teach(Named(id2label=dict(enumerate(CLASSES[:4]))), Named(id2label=dict(enumerate(CLASSES))))
