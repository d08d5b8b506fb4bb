"""What a data loader reads: examples by (epoch, index), each a pure function of (data seed, epoch, index)."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hf_lskd.data.images import ImageSet
from hf_lskd.data.mixing import Mixing
from hf_lskd.data.transforms import (
    Normalization,
    augmentation_of,
    evaluation_geometry,
    evaluation_transform,
    normalization_of,
    normalize,
    preserved_generators,
    seed_generators,
    seed_of,
    training_transform,
)
from hf_lskd.errors import InputError

Key = int | tuple[int, int]
_PREPARED: WeakKeyDictionary[ImageSet, dict[str, Tensor | None]] = WeakKeyDictionary()
PREPARED_LIMIT = 512 * 2**20  # bytes; larger splits are resized one picture at a time


class EpochSampler(Sampler[tuple[int, int]]):
    """Keys (epoch, index) in an order that is a pure function of (seed, epoch).

    Carrying the epoch in the key is what lets worker processes, also persistent ones, know it.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        self.n, self.seed, self.epoch = n, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch, counted from 0, at the next iteration."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, epoch))
        for index in torch.randperm(self.n, generator=generator).tolist():
            yield epoch, index


class ImageDataset(Dataset[dict[str, Any]]):
    """Examples {"pixel_values": float32 [3, H, W], "labels": int, "example_id": int}.

    A key is an index (epoch 0) or a pair (epoch, index). With `train`, the augmentation applies and, with `mix`
    {mixup, cutmix}, "labels" is float32 [num_classes], a probability each. Without it, this is the evaluation transform.
    Augmentation is a pure function of (data_seed, epoch, index); mixing one of (data_seed, epoch, the batch's indices).
    With `augmentation_versions` k an example has k augmented versions and no more: epoch e reads that of epoch e mod k, so the
    first k epochs are those of unlimited augmentation, and each version comes once in every k epochs.
    Where no augmentation applies and the split is one array, whole batches are gathered and normalised at once.
    `random` says whether epochs go on looking different.
    Raises InputError for unknown augmentation or mixing, and for versions below 1, without augmentation, or with mixing.
    """

    def __init__(
        self,
        images: ImageSet,
        data_config: Mapping[str, Any],
        *,
        augmentation: Mapping[str, Any] | str = "none",
        augmentation_versions: int | None = None,
        train: bool = False,
        data_seed: int = 0,
        mix: Mapping[str, float] | None = None,
        num_classes: int,
    ) -> None:
        self.images, self.data_config, self.data_seed, self.num_classes = (
            images,
            dict(data_config),
            data_seed,
            num_classes,
        )
        self.normalization: Normalization = normalization_of(data_config)
        chosen = augmentation_of(augmentation)
        self.mixing = Mixing.of(mix, num_classes) if train else None
        self.augmented = bool(train and chosen)
        self.augmentation_versions = augmentation_versions if train else None
        if self.augmentation_versions is not None:
            check_versions(self.augmentation_versions, self.augmented, self.mixing is not None)
        self.random = self.augmented and self.augmentation_versions is None
        self.transform = (
            training_transform(data_config, chosen) if self.augmented else evaluation_transform(data_config)
        )
        self._pixels = None if self.augmented else _prepared(images, data_config)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """The examples of one batch, in the order of `keys`."""
        pairs = [(0, int(key)) if not isinstance(key, tuple) else (int(key[0]), int(key[1])) for key in keys]
        indices = [index for _, index in pairs]
        for index in indices:
            if not 0 <= index < len(self.images):
                raise IndexError(f"example {index} of {len(self.images)}")
        pixels: Sequence[Tensor] | Tensor
        pixels = self._gather(indices) if self._pixels is not None else self._one_by_one(pairs)
        classes = self.images.labels[indices]
        labels: Sequence[Any] | Tensor = classes.tolist()
        if self.mixing is not None:
            batch = pixels if isinstance(pixels, Tensor) else torch.stack(pixels)
            pixels, labels = self.mixing(batch, torch.from_numpy(classes), self.data_seed, pairs)
        return [
            {"pixel_values": image, "labels": label, "example_id": index}
            for image, label, index in zip(pixels, labels, indices)
        ]

    def train_sampler(self) -> EpochSampler:
        """Every example once an epoch, in an order of this data seed."""
        return EpochSampler(len(self), self.data_seed)

    def _gather(self, indices: Sequence[int]) -> Tensor:
        assert self._pixels is not None
        return normalize(self._pixels[torch.tensor(indices)], self.normalization)

    def _one_by_one(self, pairs: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Not stacked: the collator does that, and copying a batch twice costs as much as a tenth of the decoding."""
        if not self.augmented:
            return [self.transform(self.images.image(index)) for _, index in pairs]
        if self.augmentation_versions is not None:
            pairs = [(epoch % self.augmentation_versions, index) for epoch, index in pairs]
        made = []
        draft = bool(getattr(self.images, "draft", False))
        with preserved_generators():
            for epoch, index in pairs:
                seed_generators(self.data_seed, epoch, index)
                if draft:
                    made.append(self.transform.of_stored(partial(self.images.image, index)))
                else:
                    made.append(self.transform(self.images.image(index)))
        return made


def check_versions(count: Any, augmented: bool, mixed: bool) -> None:
    """Raise InputError unless `count` is a number of augmented versions that an example can have."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"data.augmentation_versions: {count!r}", "a whole number from 1, or none")
    if not augmented:
        raise InputError(
            "data.augmentation_versions without augmentation",
            "an augmentation that versions are drawn from",
            "Set data.augmentation: standard, say.",
        )
    if mixed:
        raise InputError(
            "data.augmentation_versions with mixup or cutmix",
            "one of the two",
            "An example's partner and share are drawn anew in each epoch.",
        )


def _prepared(images: ImageSet, data_config: Mapping[str, Any]) -> Tensor | None:
    """The whole split at the model's size, uint8 [N, 1 or 3, H, W]; None when it is no array or becomes too large.

    Kept as long as the split lives, since a study reads the same split again for every cell.
    """
    if images.pixels is None:
        return None
    geometry = repr([data_config.get(key) for key in ("input_size", "crop_pct", "crop_mode", "interpolation", "mean")])
    kept = _PREPARED.setdefault(images, {})
    if geometry not in kept:
        kept[geometry] = _resized(images.pixels, data_config)
    return kept[geometry]


def _resized(pixels: np.ndarray, data_config: Mapping[str, Any]) -> Tensor | None:
    height, width = data_config["input_size"][1:]
    # timm pads with the mean's colour in crop mode "border", which needs three channels.
    if pixels.ndim == 3 and data_config.get("crop_mode") == "border":
        pixels = np.repeat(pixels[..., None], 3, axis=3)
    if len(pixels) * height * width * (pixels.shape[3] if pixels.ndim == 4 else 1) > PREPARED_LIMIT:
        return None
    if pixels.shape[1:3] != (height, width) or data_config.get("crop_pct") != 1.0:
        resize = evaluation_geometry(data_config)
        pixels = np.stack([np.asarray(resize(Image.fromarray(image))) for image in pixels])
    return torch.from_numpy(pixels[:, None] if pixels.ndim == 3 else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
