"""The embeddings that class statistics are taken of: what the classifier reads, each example once, or a refusal."""

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import IterableDataset

from hf_lskd import DistillationTrainer, InputError
from hf_lskd.models import find_classifier, reading_classifier
from tests.conftest import RESNET, Examples, Make, tiny
from tests.families import ONE_HEAD, SEVERAL_HEADS, SIDE, build

PICTURES = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def logits_of(model: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=pictures).logits if hasattr(model, "config") else model(pictures)


@torch.no_grad()
def assert_the_classifier_says_the_logits(model: nn.Module, pictures: torch.Tensor = PICTURES) -> None:
    head = find_classifier(model)
    with reading_classifier(model) as read:
        logits = logits_of(model, pictures)
        features = read(logits)
    assert features.shape == (len(pictures), head.weight[0].numel())
    again = features @ head.weight.flatten(1).T
    torch.testing.assert_close(again if head.bias is None else again + head.bias, logits, rtol=1e-4, atol=1e-4)
    assert logits.std() > 1e-3  # else any layer would do


@pytest.mark.parametrize("family", ONE_HEAD)
def test_what_is_read_times_the_weight_is_the_logits_in_transformers_families(family: str) -> None:
    assert_the_classifier_says_the_logits(build(ONE_HEAD[family]))


TIMM = {
    "resnet10t": {"channels": (8, 8, 8, 8), "stem_width": 8},  # one fc
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},  # norm in the head
    "resnetv2_50": {"layers": (1, 1, 1, 1), "channels": (16, 16, 16, 16), "stem_chs": 8},  # head is a convolution
    "dla46x_c": {},  # the same, of another kind
    "efficientvit_b0": {},  # a head of several layers
    "efficientvit_m0": {"img_size": 64},  # batch norm inside the head
    "mobilenetv3_small_050": {},  # a convolution between pooling and classifier
    "test_vit": {"img_size": SIDE},
    "test_byobnet": {},
    "inception_next_atto": {},  # two linear layers in the head
    "xcit_nano_12_p8_224": {},
    "vit_tiny_patch16_224": {"img_size": SIDE, "depth": 1, "embed_dim": 10, "num_heads": 2},  # as wide as its classes
}


@pytest.mark.parametrize("name", TIMM)
def test_what_is_read_times_the_weight_is_the_logits_in_timm_models(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **TIMM[name]).eval()
    nn.init.normal_(find_classifier(model).weight, 0, 0.3)
    nn.init.normal_(find_classifier(model).bias, 0, 0.3)
    side = TIMM[name].get("img_size", 64)
    assert_the_classifier_says_the_logits(model, torch.randn(2, 3, side, side))


@pytest.mark.parametrize("family", SEVERAL_HEADS)
def test_several_averaged_heads_are_refused(family: str, arguments: Make) -> None:
    trainer = DistillationTrainer(build(SEVERAL_HEADS[family]), arguments(), eval_dataset=Examples(4, size=SIDE))
    with pytest.raises(InputError, match="not the output of one layer"):
        trainer.class_statistics()


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "crossvit_tiny_240"])
def test_timm_models_of_several_heads_are_refused_before_they_run(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    with pytest.raises(InputError, match="has 2 classifiers"):
        find_classifier(model)


class Scaled(nn.Module):
    """Logits that are the last layer's, times a temperature: its input does not explain them."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return 3 * self.head(pictures.flatten(1)[:, :8])


def test_logits_that_no_layer_says_are_refused(arguments: Make) -> None:
    for model, message in (
        (Scaled(nn.Linear(8, 5)), "not the output of one layer"),
        (Scaled(nn.Bilinear(8, 8, 5)), "no linear layer"),
        (timm.create_model("test_byobnet", num_classes=0), "no linear layer with 0"),
    ):
        with pytest.raises(InputError, match=message):
            DistillationTrainer(model, arguments(), eval_dataset=Examples(4, size=SIDE)).class_statistics()


def expected(model: nn.Module, data: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, centroid and within-class scatter of each class, from a plain forward pass to the pooled features."""
    model.eval()
    with torch.no_grad():
        inner = model.timm_model
        features = inner.forward_head(inner.forward_features(data.images), pre_logits=True).double().numpy()
    labels = data.labels.numpy()
    groups = [features[labels == c] for c in range(5)]
    centroids = np.stack([group.mean(0) for group in groups])
    within = np.array([((group - centre) ** 2).sum(1).mean() for group, centre in zip(groups, centroids)])
    return np.array([len(group) for group in groups]), centroids, within


class Stream(IterableDataset):
    def __init__(self, data: Examples) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data[i] for i in range(len(self.data)))


def as_hf(data: Examples) -> datasets.Dataset:
    rows = {"pixel_values": data.images.numpy(), "labels": data.labels.numpy(), "comment": ["unused"] * len(data)}
    return datasets.Dataset.from_dict(rows).with_format("torch")


@pytest.mark.parametrize("kind", [lambda data: data, as_hf, Stream], ids=["torch", "datasets", "iterable"])
def test_class_statistics_are_numpys_over_a_ragged_evaluation_each_example_once(
    kind: Callable, arguments: Make
) -> None:
    data, model = Examples(23, seed=4), tiny(RESNET, 1)
    trainer = DistillationTrainer(model, arguments(per_device_eval_batch_size=8), eval_dataset=kind(data))
    found = trainer.class_statistics()
    count, mean, within = expected(model, data)
    np.testing.assert_array_equal(np.asarray(found.count), count)
    np.testing.assert_allclose(np.asarray(found.mean), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.asarray(found.within), within, rtol=1e-4)
    other = Examples(7, seed=5)
    np.testing.assert_allclose(
        np.asarray(trainer.class_statistics(other).mean), expected(model, other)[1], rtol=1e-4, atol=1e-6
    )


def test_the_readings_carry_ids_logits_and_labels_in_order(arguments: Make) -> None:
    data, model = Examples(11), tiny(RESNET, 1)
    trainer = DistillationTrainer(model, arguments(per_device_eval_batch_size=4), eval_dataset=data)
    batches = list(trainer.penultimate())
    assert [len(batch.labels) for batch in batches] == [4, 4, 3]
    assert torch.cat([batch.example_id for batch in batches]).tolist() == list(range(11))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.labels)
    logits = model.eval()(pixel_values=data.images).logits
    torch.testing.assert_close(torch.cat([batch.logits for batch in batches]), logits)


def test_reading_leaves_modes_hooks_gradients_and_weights_as_they_were(arguments: Make) -> None:
    model = tiny(RESNET, 1)
    model.train()
    frozen = model.timm_model.layer2.eval()
    head = find_classifier(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    trainer = DistillationTrainer(model, arguments(), eval_dataset=Examples(9))
    trainer.class_statistics()
    next(trainer.penultimate())  # left in the middle
    assert [module.training for module in model.modules()] == modes
    assert not frozen.training
    assert model.training
    assert not head._forward_hooks
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    trainer.model(pixel_values=Examples(2).images).logits.sum().backward()  # nothing was taken under inference mode


def test_statistics_of_an_empty_set_are_refused(arguments: Make) -> None:
    with pytest.raises(InputError, match="empty"):
        DistillationTrainer(tiny(), arguments(), eval_dataset=Examples(0)).class_statistics()
