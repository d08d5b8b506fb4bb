"""DistillationTrainer: which gradient it takes, whatever the batch is cut into, and what it leaves alone."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_lskd import DistillationTrainer, InputError
from tests.conftest import CLASSES, CONVNEXT, RESNET, VIT, Bare, Examples, Make, assert_same_weights, tiny, weights


def freeze_norms(model: nn.Module) -> nn.Module:
    """Batch norms that stay in eval mode, as fine-tuning often has them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
    return model


def by_hand(
    student: nn.Module, teacher: nn.Module | None, data: Examples, temperature: float, weight: float, smoothing: float
) -> dict:
    """Gradients of one full batch, written with torch's own losses."""
    student.train()
    logits = student(pixel_values=data.images).logits
    loss = F.cross_entropy(logits, data.labels, label_smoothing=smoothing)
    if teacher is not None:
        with torch.no_grad():
            targets = teacher.eval()(pixel_values=data.images).logits
        soft = F.kl_div(
            (logits / temperature).log_softmax(-1), (targets / temperature).softmax(-1), reduction="batchmean"
        )
        loss = (1 - weight) * loss + weight * temperature**2 * soft
    names, parameters = zip(*student.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, parameters)))


@pytest.mark.parametrize("which", [RESNET, VIT], ids=["resnet", "vit"])
@pytest.mark.parametrize(("smoothing", "weight", "temperature"), [(0.0, 1.0, 1.0), (0.1, 0.3, 4.0), (0.1, None, 1.0)])
def test_one_step_is_the_gradient_taken_by_hand(
    which: Any, smoothing: float, weight: float | None, temperature: float, arguments: Make
) -> None:
    data = Examples(12)
    student, teacher = tiny(which, 1), tiny(which, 2) if weight is not None else None
    before = weights(student)
    expected = by_hand(student, teacher, data, temperature, weight or 0.0, smoothing)
    student.load_state_dict(before)
    kd = {"kd_temperature": temperature, "kd_weight": 1.0 if weight is None else weight}
    args = arguments(per_device_train_batch_size=12, label_smoothing_factor=smoothing, **kd)
    DistillationTrainer(student, args, train_dataset=data, teacher_model=teacher).train()
    for name, gradient in expected.items():
        step = (before[name] - dict(student.named_parameters())[name].detach()) / args.learning_rate
        torch.testing.assert_close(step, gradient, rtol=2e-4, atol=2e-6)


def one_epoch(
    which, teacher: bool, smoothing: float, accumulation: int, arguments: Make, **kwargs: Any
) -> dict[str, torch.Tensor]:
    """Weights after two optimizer steps, of 28 examples and of a short window of 12, cut into micro-batches."""
    student = freeze_norms(tiny(which, 1))
    args = arguments(
        per_device_train_batch_size=28 // accumulation,
        gradient_accumulation_steps=accumulation,
        label_smoothing_factor=smoothing,
        kd_temperature=2.0,
        kd_weight=0.5,
        **kwargs,
    )
    data = Examples(40, size=32 if which is CONVNEXT else 16)
    trainer = DistillationTrainer(student, args, train_dataset=data, teacher_model=tiny(which, 2) if teacher else None)
    trainer.train()
    assert trainer.state.global_step == 2
    return weights(student)


@pytest.mark.parametrize("which", [VIT, CONVNEXT], ids=["vit", "convnext"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("teacher", [False, True], ids=["alone", "distilled"])
def test_trap_01_and_03_the_step_does_not_depend_on_accumulation(
    which, smoothing: float, teacher: bool, arguments: Make
) -> None:
    whole = one_epoch(which, teacher, smoothing, 1, arguments)
    for accumulation in (4, 7):
        cut = one_epoch(which, teacher, smoothing, accumulation, arguments)
        for name, value in whole.items():
            torch.testing.assert_close(cut[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("teacher", [False, True], ids=["alone", "distilled"])
def test_trap_30_with_batch_norm_neither_while_the_norms_are_in_eval_mode(teacher: bool, arguments: Make) -> None:
    whole = one_epoch(RESNET, teacher, 0.1, 1, arguments)
    for accumulation in (4, 7):
        cut = one_epoch(RESNET, teacher, 0.1, accumulation, arguments)
        for name, value in whole.items():
            torch.testing.assert_close(cut[name], value, rtol=1e-4, atol=1e-5)


def test_trap_07_the_teacher_stays_in_eval_mode_and_as_it_was(arguments: Make) -> None:
    teacher = tiny(RESNET, 2, drop_rate=0.5)
    before = weights(teacher)

    class Meddler(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            teacher.train()

    args = arguments(num_train_epochs=2, weight_decay=0.1)
    trainer = DistillationTrainer(
        tiny(RESNET, 1), args, train_dataset=Examples(32), teacher_model=teacher, callbacks=[Meddler()]
    )
    trainer.train()
    assert not teacher.training
    assert_same_weights(weights(teacher), before)
    assert all(not parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module is teacher for module in trainer.model.modules())


def test_trap_08_checkpoints_hold_the_student_alone_and_load_without_us(arguments: Make, tmp_path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    student = tiny(RESNET, 1)
    args = arguments(save_strategy="steps", save_steps=2)
    trainer = DistillationTrainer(student, args, train_dataset=Examples(32), teacher_model=tiny(RESNET, 2))
    trainer.train()
    trainer.save_model(tmp_path / "final")
    images = Examples(4).images
    expected = student.eval()(pixel_values=images).logits
    for folder in (tmp_path / "final", tmp_path / "trainer" / "checkpoint-4"):
        stored = load_file(folder / "model.safetensors")
        assert sorted(stored) == sorted(student.timm_model.state_dict())
        ours, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        torch.testing.assert_close(ours.eval()(pixel_values=images).logits, expected)
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        torch.testing.assert_close(theirs(images), expected)
        assert AutoImageProcessor.from_pretrained(folder)(torch.zeros(3, 16, 16))["pixel_values"].shape[0] == 1
        assert list(ours.config.id2label.values()) == CLASSES


def test_trap_13_differing_classes_stop_with_both_sides(arguments: Make) -> None:
    from hf_lskd.models import load_image_classifier

    def teacher(names: list[str]) -> nn.Module:
        return load_image_classifier(VIT[0], class_names=names, pretrained=False, model_args=VIT[1])

    with pytest.raises(InputError, match="teacher of 6 classes for a student of 5"):
        DistillationTrainer(tiny(), arguments(), teacher_model=teacher([*CLASSES, "one more"]))
    swapped = [CLASSES[0], CLASSES[2], CLASSES[1], *CLASSES[3:]]
    with pytest.raises(InputError, match="class 1 is 'class 2' for the teacher and 'class 1' for the student"):
        DistillationTrainer(tiny(), arguments(), teacher_model=teacher(swapped))


def test_trap_14_an_examples_id_reaches_the_trainer_with_the_example_after_any_shuffle(arguments: Make) -> None:
    data = Examples(24)
    seen: dict[int, torch.Tensor] = {}

    class Keeper(DistillationTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.update(zip(inputs["example_id"].tolist(), inputs["pixel_values"]))
            return super().compute_loss(model, inputs, *args, **kwargs)

    Keeper(tiny(), arguments(train_sampling_strategy="random"), train_dataset=data, teacher_model=tiny(seed=2)).train()
    assert sorted(seen) == list(range(24))
    assert list(seen) != sorted(seen)
    assert all(torch.equal(image, data.images[index]) for index, image in seen.items())


def test_trap_16_the_distillation_temperature_has_a_name_of_its_own(arguments: Make) -> None:
    assert arguments(kd_temperature=3.0).kd_temperature == 3.0
    with pytest.raises(TypeError, match="temperature"):
        arguments(temperature=3.0)


def test_trap_25_the_teacher_is_compiled_on_its_own(arguments: Make) -> None:
    compiled: list[Any] = []
    args = arguments(torch_compile=True, torch_compile_backend="eager", max_steps=2)
    trainer = DistillationTrainer(tiny(seed=1), args, train_dataset=Examples(16), teacher_model=tiny(seed=2))
    assert trainer.teacher is not None
    assert isinstance(trainer.teacher.members[0].forward, torch._dynamo.eval_frame.OptimizedModule)
    compiled.append(trainer.train())
    plain = DistillationTrainer(
        tiny(seed=1), arguments(max_steps=2), train_dataset=Examples(16), teacher_model=tiny(seed=2)
    ).train()
    assert compiled[0].training_loss == pytest.approx(plain.training_loss, rel=2e-3)


def test_trap_32_the_teacher_runs_under_no_grad_not_inference_mode(arguments: Make) -> None:
    trainer = DistillationTrainer(tiny(seed=1), arguments(), teacher_model=tiny(seed=2))
    assert trainer.teacher is not None
    logits = trainer.teacher.logits({"pixel_values": Examples(2).images})
    assert not logits.requires_grad
    assert not logits.is_inference()


@pytest.mark.parametrize(
    "make", [Bare, lambda: timm.create_model("test_byobnet", num_classes=5)], ids=["module", "timm"]
)
def test_trap_33_bare_modules_are_smoothed_distilled_and_evaluated(
    make: Callable[[], nn.Module], arguments: Make
) -> None:
    torch.manual_seed(0)
    teacher, student = make(), make()
    args = arguments(label_smoothing_factor=0.1, num_train_epochs=8, kd_weight=0.5)
    metrics = []
    for model, other in ((teacher, None), (student, teacher)):
        trainer = DistillationTrainer(
            model,
            args,
            train_dataset=Examples(40),
            eval_dataset=Examples(11, seed=1),
            teacher_model=other,
            compute_metrics=lambda p: {"right": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        )
        assert args.label_smoothing_factor == 0.1
        trainer.train()
        metrics.append(trainer.evaluate())
    assert all(m["eval_right"] > 0.4 for m in metrics)
    logits = student.eval()(Examples(11, seed=1).images)
    labels = Examples(11, seed=1).labels
    assert metrics[1]["eval_nll"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert metrics[1]["eval_loss"] == pytest.approx(
        F.cross_entropy(logits, labels, label_smoothing=0.1).item(), rel=1e-2
    )


def losses_of(trainer: Trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_a_teacher_the_loss_curve_is_the_stock_trainers(smoothing: float, arguments: Make, tmp_path) -> None:
    plain = TrainingArguments(
        output_dir=str(tmp_path / "stock"), report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
        num_train_epochs=2, label_smoothing_factor=smoothing, seed=5, dataloader_pin_memory=False,
    )  # fmt: skip
    curves = []
    for kind in (Trainer, DistillationTrainer):
        trainer = kind(tiny(seed=1, drop_rate=0.2), plain, train_dataset=Examples(33), eval_dataset=Examples(9, 1))
        trainer._signature_columns = [
            "pixel_values",
            "labels",
        ]  # the stock trainer hands every other column to the model
        curves.append((losses_of(trainer), trainer.evaluate()["eval_loss"]))
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-6)
    assert curves[0][1] == pytest.approx(curves[1][1], rel=1e-6)


def test_what_is_logged_beside_the_stock_names(arguments: Make) -> None:
    data, student, teacher = Examples(24), tiny(seed=1), tiny(seed=2)
    student.eval()
    kd = {"kd_temperature": 2.0, "kd_weight": 0.25, "label_smoothing_factor": 0.1}
    args = arguments(per_device_train_batch_size=6, gradient_accumulation_steps=4, **kd)
    with torch.no_grad():
        logits, targets = student(pixel_values=data.images).logits, teacher.eval()(pixel_values=data.images).logits
    trainer = DistillationTrainer(student, args, train_dataset=data, teacher_model=teacher)
    trainer.train()
    logged = trainer.state.log_history[0]
    p = (targets / 2).softmax(-1)
    hard = F.cross_entropy(logits, data.labels, label_smoothing=0.1).item()
    soft = 4 * F.kl_div((logits / 2).log_softmax(-1), p, reduction="batchmean").item()
    assert logged["hard_loss"] == pytest.approx(hard, rel=1e-4)
    assert logged["soft_loss"] == pytest.approx(soft, rel=2e-3)  # tiny models: both sides are nearly uniform
    assert logged["loss"] == pytest.approx(0.75 * hard + 0.25 * soft, rel=1e-4)
    assert logged["target_entropy"] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-4)
    assert logged["agreement"] == pytest.approx((logits.argmax(-1) == targets.argmax(-1)).float().mean().item())


def test_a_callback_can_change_the_temperature(arguments: Make) -> None:
    class Cooling(TrainerCallback):
        def on_step_begin(self, args: Any, *_: Any, **__: Any) -> None:
            args.kd_temperature = 64.0

    logged = []
    for callbacks in ([], [Cooling()]):
        args = arguments(kd_temperature=1.0, max_steps=1)
        trainer = DistillationTrainer(
            tiny(seed=1), args, train_dataset=Examples(8), teacher_model=tiny(seed=2), callbacks=callbacks
        )
        trainer.train()
        logged.append(trainer.state.log_history[0]["target_entropy"])
    assert logged[1] > logged[0]


def test_probabilities_as_labels_train_as_their_mixture(arguments: Make) -> None:
    data, student = Examples(12), tiny(RESNET, 1)
    mixed = 0.6 * F.one_hot(data.labels, 5).float() + 0.4 * F.one_hot(data.labels.flip(0), 5).float()
    before = weights(student)
    student.train()
    loss = F.cross_entropy(student(pixel_values=data.images).logits, mixed, label_smoothing=0.1)
    head = torch.autograd.grad(loss, student.timm_model.fc.weight)[0]
    student.load_state_dict(before)
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(data.images, mixed)]
    args = arguments(per_device_train_batch_size=12, label_smoothing_factor=0.1)
    trainer = DistillationTrainer(student, args, train_dataset=rows)
    trainer.train()
    step = (before["timm_model.fc.weight"] - student.timm_model.fc.weight.detach()) / args.learning_rate
    torch.testing.assert_close(step, head, rtol=1e-4, atol=1e-6)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_multi_label_training_keeps_the_stock_loss_and_refuses_a_teacher(arguments: Make) -> None:
    student = tiny(seed=1)
    student.config.problem_type = "multi_label_classification"
    labels = (torch.rand(8, 5, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(Examples(8).images, labels)]
    expected = F.binary_cross_entropy_with_logits(student(pixel_values=Examples(8).images).logits, labels).item()
    trainer = DistillationTrainer(student, arguments(), train_dataset=rows)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="single-label"):
        DistillationTrainer(student, arguments(), train_dataset=rows, teacher_model=tiny(seed=2)).train()


def test_a_custom_loss_function_is_used_alone_and_refuses_a_teacher(arguments: Make) -> None:
    def constant(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return 0 * outputs.logits.sum() + 7.0

    trainer = DistillationTrainer(tiny(), arguments(), train_dataset=Examples(8), compute_loss_func=constant)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(7.0)
    with pytest.raises(InputError, match="compute_loss_func"):
        DistillationTrainer(tiny(), arguments(), compute_loss_func=constant, teacher_model=tiny(seed=2))


def test_model_init_and_a_model_name_work_with_a_teacher(arguments: Make) -> None:
    trainer = DistillationTrainer(
        args=arguments(max_steps=1),
        train_dataset=Examples(8),
        model_init=lambda: tiny(seed=1),
        teacher_model=tiny(seed=2),
    )
    trainer.train()
    assert trainer.state.log_history[0]["soft_loss"] > 0
    with pytest.raises(InputError, match="resnet18"):
        DistillationTrainer("resnet81", arguments())


def test_bad_arguments_are_refused_before_anything_runs(arguments: Make) -> None:
    for wrong in (
        {"kd_temperature": 0},
        {"label_smoothing_factor": 1.0},
        {"kd_weight": 2},
        {"kd_top_k": 0},
        {"kd_loss_scale": 0},
    ):
        with pytest.raises(InputError):
            arguments(**wrong)


def test_the_average_of_the_weights_is_what_is_evaluated_and_kept(arguments: Make) -> None:
    student = tiny(seed=1)
    path: list[torch.Tensor] = [weights(student)["timm_model.head.weight"]]

    class Keeper(TrainerCallback):
        def on_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            path.append(weights(model)["timm_model.head.weight"])

    args = arguments(model_ema=0.5, eval_strategy="epoch")
    trainer = DistillationTrainer(
        student, args, train_dataset=Examples(24), eval_dataset=Examples(8), callbacks=[Keeper()]
    )
    trainer.train()
    average = path[0]
    for point in path[1:]:
        average = 0.5 * average + 0.5 * point
    torch.testing.assert_close(weights(student)["timm_model.head.weight"], average)
    during = next(entry["eval_nll"] for entry in trainer.state.log_history if "eval_nll" in entry)
    assert trainer.evaluate()["eval_nll"] == pytest.approx(during, rel=1e-6)


def test_channels_last_trains_the_same_weights(arguments: Make) -> None:
    found = []
    for channels_last in (False, True):
        student = tiny(RESNET, 1)
        args = arguments(channels_last=channels_last, max_steps=2)
        DistillationTrainer(student, args, train_dataset=Examples(16), teacher_model=tiny(RESNET, 2)).train()
        found.append(weights(student))
        convolution = student.timm_model.layer2[0].conv1.weight
        assert convolution.is_contiguous(memory_format=torch.channels_last) is channels_last
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5)


def test_a_model_init_keeps_the_memory_format_and_may_be_bare_and_smoothed(arguments: Make) -> None:
    args = arguments(channels_last=True, max_steps=1, label_smoothing_factor=0.1)
    trainer = DistillationTrainer(args=args, train_dataset=Examples(8), model_init=lambda: tiny(RESNET, 1))
    trainer.train()
    weight = trainer.model.timm_model.layer2[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    bare = DistillationTrainer(
        args=arguments(max_steps=1, label_smoothing_factor=0.1), train_dataset=Examples(8), model_init=Bare
    )
    bare.train()
    assert bare.state.log_history[0]["hard_loss"] > 0
    teacher = tiny(seed=2)
    with pytest.raises(InputError, match="share parameters"):
        DistillationTrainer(
            args=arguments(), train_dataset=Examples(8), model_init=lambda: teacher, teacher_model=teacher
        )


def test_float_labels_without_a_stated_problem_are_told_of(arguments: Make, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"pixel_values": row["pixel_values"], "labels": F.one_hot(torch.tensor(row["labels"]), 5).float()}
        for row in Examples(8)
    ]
    student = tiny(seed=1)
    student.config.problem_type = None
    with caplog.at_level(logging.WARNING, logger="hf_lskd"):
        DistillationTrainer(student, arguments(max_steps=1), train_dataset=rows).train()
    assert "taken for probabilities" in caplog.text
    assert "problem_type" in caplog.text
