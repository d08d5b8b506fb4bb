"""Tiny models and data: no network, no downloads, a second or less each."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start; several share the machine

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

CLASSES = [f"class {i}" for i in range(5)]
VIT = ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2})
CONVNEXT = ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)})
RESNET = ("resnet10t", {"channels": (8, 8, 8, 8), "stem_width": 8})
Make = Callable[..., Any]  # what the fixture `arguments` is


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors: a second thread only waits."""
    torch.set_num_threads(1)


class Examples(Dataset):
    """Random 16x16 pictures with labels, held in memory."""

    def __init__(self, n: int, seed: int = 0, classes: int = len(CLASSES), size: int = 16) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(n) % classes
        prototypes = torch.randn(classes, 3, size, size, generator=torch.Generator().manual_seed(99))
        self.images = prototypes[self.labels] + torch.randn(n, 3, size, size, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": int(self.labels[index]), "example_id": index}


class Bare(nn.Module):
    """A model that knows nothing of transformers: no config, one positional argument."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3 * 16 * 16, 8), nn.Linear(8, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.flatten(1)).relu())


def tiny(which: tuple[str, dict] = VIT, seed: int = 0, **model_args: Any) -> nn.Module:
    """A tiny model of ours with five named classes; its weights depend on the seed alone."""
    from hf_lskd.models import load_image_classifier

    torch.manual_seed(seed)
    name, own = which
    return load_image_classifier(name, class_names=CLASSES, pretrained=False, model_args={**own, **model_args})


@pytest.fixture
def arguments(tmp_path: Path) -> Make:
    """Quiet training arguments: sequential order, plain SGD, no checkpoints."""
    from hf_lskd import DistillationArguments

    def make(**kwargs: Any) -> Any:
        usual = {
            "output_dir": str(tmp_path / "trainer"),
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "optim": "sgd",
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "train_sampling_strategy": "sequential",
            "dataloader_pin_memory": False,
        }
        return DistillationArguments(**{**usual, **kwargs})

    return make


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key
