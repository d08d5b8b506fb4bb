"""A few classes of ImageNet in the real format: names, folders, tar files and devkit, with pictures made here."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

# The ten target classes of the paper: five retrievers, five snakes.
SYNSETS = ("n01728572", "n01728920", "n01729322", "n01734418", "n01737021",
           "n02099267", "n02099429", "n02099601", "n02099712", "n02099849")  # fmt: skip
NAMES = ("thunder snake", "ringneck snake", "hognose snake", "king snake", "water snake",
         "flat-coated retriever", "curly-coated retriever", "golden retriever", "Labrador retriever",
         "Chesapeake Bay retriever")  # fmt: skip
TRAIN_EACH, VALIDATION_EACH = 4, 2
Files = dict[str, dict[str, bytes]]  # {synset: {name: content}}


def picture(seed: int, width: int = 40, height: int = 30) -> np.ndarray:
    """uint8 [height, width, 3]: smooth colours, as photographs have, so that JPEG keeps them well."""
    chance = np.random.default_rng(seed)
    coarse = Image.fromarray(chance.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def jpeg(seed: int, mode: str = "RGB", **size: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, **size)).convert(mode).save(buffer, "jpeg", quality=92)
    return buffer.getvalue()


def train_files(synsets: Sequence[str] = SYNSETS, each: int = TRAIN_EACH) -> Files:
    """Of each class the second picture is grey and the third CMYK, as some of ImageNet's are."""
    modes = ["RGB", "L", "CMYK"]
    return {
        synset: {
            f"{synset}_{number}.JPEG": jpeg(100 * label + k, modes[k] if k < 3 else "RGB")
            for k, number in enumerate((10026, 27, 1200, 9, *range(20000, 20000 + each))[:each])
        }
        for label, synset in enumerate(synsets)
    }


def validation_order(synsets: Sequence[str] = SYNSETS, each: int = VALIDATION_EACH) -> list[str]:
    """The synset of picture 1, 2, … : mixed, as in the real one."""
    return [synsets[(3 * k) % len(synsets)] for k in range(each * len(synsets))]


def validation_files(order: Sequence[str]) -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{k:08d}.JPEG": jpeg(5000 + k) for k in range(1, len(order) + 1)}


def write_tree(folder: Path, held_out: str = "val") -> Path:
    for synset, files in train_files().items():
        write(folder / "train" / synset, files)
    for (name, content), synset in zip(validation_files(validation_order()).items(), validation_order()):
        write(folder / held_out / synset, {name: content})
    return folder


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def tar(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def train_tar(files: Files | None = None) -> bytes:
    classes = train_files() if files is None else files
    return tar({f"{synset}.tar": tar(pictures) for synset, pictures in reversed(classes.items())})


def meta(synsets: Sequence[str] = SYNSETS) -> bytes:
    """meta.mat: a struct array of the classes, in another order than their synsets', and of one inner node behind them."""
    kind = [(key, object) for key in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children",
                                      "wordnet_height", "num_train_images")]  # fmt: skip
    rows = [(float(k), synset, "words", "gloss", 0.0, np.zeros((1, 0)), 0.0, 1300.0)
            for k, synset in enumerate(reversed(synsets), start=1)]  # fmt: skip
    rows.append((1001.0, "n00001740", "entity", "all", 2.0, np.array([[1.0, 2.0]]), 19.0, 0.0))
    stream = io.BytesIO()
    savemat(stream, {"synsets": np.array(rows, dtype=kind).reshape(-1, 1)})
    return stream.getvalue()


def truth(order: Sequence[str], synsets: Sequence[str] = SYNSETS) -> bytes:
    number = {synset: k for k, synset in enumerate(reversed(synsets), start=1)}
    return "".join(f"{number[synset]}\n" for synset in order).encode()


def devkit(**changes: bytes | None) -> bytes:
    files = {"readme": b"ILSVRC2012", "truth": truth(validation_order()), "meta": meta(), **changes}
    names = {"readme": "readme.txt", "truth": "data/ILSVRC2012_validation_ground_truth.txt", "meta": "data/meta.mat"}
    kept = {f"ILSVRC2012_devkit_t12/{names[key]}": content for key, content in files.items() if content is not None}
    return tar(kept, "w:gz")


def write_tars(folder: Path) -> Path:
    content = {
        "ILSVRC2012_img_train.tar": train_tar(),
        "ILSVRC2012_img_val.tar": tar(validation_files(validation_order())),
        "ILSVRC2012_devkit_t12.tar.gz": devkit(),
    }
    write(folder, content)
    return folder
