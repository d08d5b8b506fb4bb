"""Pictures a second of the training pipeline alone, beside the decode limit, measured side by side in one run.

    python -m bench.images [ROUNDS] [PICTURES]

Generated JPEG files of two sizes (500 × 375, as most of ImageNet's, and 1500 × 1125) in a tree, read from the page cache. Rows:
Pillow decoding alone (read the file, decode, RGB), then `source: imagenet` with the standard augmentation at 224 pixels, with
and without `draft`, each through a data loader with 1 and 2 workers and batches of 32. No model: what a GPU waits for.
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, features
from torch.utils.data import DataLoader, Dataset

from hf_lskd.data import ImageDataset, load_images
from hf_lskd.data.image_files import FolderImages

SYNSETS = ("n01728572", "n02099267")
SIZES = {"500 x 375": (500, 375), "1500 x 1125": (1500, 1125)}
BATCH, TARGET = 32, 224
CONFIG: dict[str, Any] = {"input_size": (3, TARGET, TARGET), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
                          "interpolation": "bilinear", "crop_pct": 0.875}  # fmt: skip


class DecodeOnly(Dataset):
    """The files decoded and nothing else; one number comes back."""

    def __init__(self, images: FolderImages) -> None:
        self.paths = [images.path(index) for index in range(len(images))]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        with Image.open(self.paths[index]) as picture:
            return picture.convert("RGB").width


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Noise whose power falls with frequency as that of photographs does, so that it is packed and decoded like one."""
    chance = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(x, y), 1 / width) ** 1.1
    planes = []
    for _ in range(3):
        plane = np.fft.irfft2(np.fft.rfft2(chance.standard_normal((height, width))) * fall, (height, width))
        planes.append(128 + 50 * (plane - plane.mean()) / plane.std())
    grey = planes[0]
    mixed = np.stack([0.8 * grey + 0.2 * plane for plane in planes], axis=-1)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def packed(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def write_tree(folder: Path, count: int, width: int, height: int) -> int:
    """A tree with `count` pictures for training, a few different ones; returns the bytes of one."""
    kinds = [packed(photograph(seed, width, height)) for seed in range(8)]
    for k in range(count + 2):
        synset = SYNSETS[k % 2]
        place = folder / ("train" if k < count else "val") / synset
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{synset}_{k}.JPEG").write_bytes(kinds[k % 8])
    return int(np.mean([path.stat().st_size for path in folder.rglob("*.JPEG")]))


def pass_over(dataset: Dataset, workers: int) -> Callable[[], None]:
    """One epoch through a loader whose workers are already there."""
    loader = DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=True, prefetch_factor=4)

    def run() -> None:
        for _ in loader:
            pass

    return run


def runs(folder: Path, cache: Path, workers: int) -> dict[str, Callable[[], None]]:
    found = {}
    for name, draft in (("pipeline", False), ("pipeline, draft", True)):
        data = {"source": "imagenet", "path": str(folder), "subset": True, "draft": draft}
        images = load_images(data, cache_dir=cache).train
        assert isinstance(images, FolderImages)
        found.setdefault("decode only", pass_over(DecodeOnly(images), workers))
        found[name] = pass_over(
            ImageDataset(images, CONFIG, augmentation="standard", train=True, num_classes=2), workers
        )
    return found


def main() -> None:
    rounds, count = (int(sys.argv[1]) if len(sys.argv) > 1 else 5), (int(sys.argv[2]) if len(sys.argv) > 2 else 256)
    torch.set_num_threads(1)
    turbo = features.check_feature("libjpeg_turbo")
    print(f"Pillow {PIL.__version__}, libjpeg-turbo {'yes' if turbo else 'no'}; {count} pictures, {rounds} rounds")
    with tempfile.TemporaryDirectory() as temporary:
        for size, (width, height) in SIZES.items():
            folder = Path(temporary) / size
            weight = write_tree(folder, count, width, height)
            print(f"\n{size}, {weight / 1000:.0f} kB a picture")
            for workers in (1, 2):
                made = runs(folder, Path(temporary) / "cache", workers)
                seconds: dict[str, list[float]] = {name: [] for name in made}
                for round_ in range(rounds + 1):
                    for name, run in made.items():
                        started = time.perf_counter()
                        run()
                        if round_:  # the first starts the workers and fills the page cache
                            seconds[name].append(time.perf_counter() - started)
                show(seconds, workers, count)


def show(seconds: dict[str, list[float]], workers: int, count: int) -> None:
    for name, times in seconds.items():
        ratios = [base / own for own, base in zip(times, seconds["decode only"])]
        print(f"  {workers} worker{'s' if workers > 1 else ' '}  {name:16s} {count / statistics.median(times):7.0f} pictures/s  "
              f"{statistics.median(ratios):5.2f} of decode only   (min {min(ratios):.2f}, max {max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
