"""A teacher's logits on disk, for data of which nothing is new after the first epochs: each example's own, found by its content.

A cache is a folder of arrays that are read in place: `keys` `[N, 16]` (a hash of each example as the teacher reads it),
`offsets` `[N + 1]`, `values` `[items, k]` float32, and where k is less than the number of classes `indices` `[items, k]` and
`tail` `[items]`, the log-sum-exp of the classes that were left out. An item is an image or a target token. `meta.json` has what
the cache was made of and a checksum of each array. A folder appears whole or not at all; of several processes that fill the
same one, the first keeps its own and the others take that.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_lskd.errors import InputError
from hf_lskd.losses import IGNORE_INDEX

logger = logging.getLogger(__name__)

FORMAT = 2  # 1: under bf16 and fp16 the teacher had computed in float32
META = "meta.json"
IMAGES, SOURCE, MASK, LABELS, DECODER_IDS = "pixel_values", "input_ids", "attention_mask", "labels", "decoder_input_ids"
BLOCK = 2**20  # bytes that are read at once for a checksum


class TeacherCache:
    """An open cache. Raises InputError for a folder that is damaged or was made of another teacher, k or form of the data."""

    def __init__(self, folder: Path, made_of: Mapping[str, Any]) -> None:
        meta = read_meta(folder)
        for name, there in meta["made_of"].items():
            if made_of.get(name) != there:
                raise InputError(
                    f"{folder} holds logits of another {name}", f"{name} {made_of.get(name)}", "Delete the folder."
                )
        for name, checksum in meta["checksums"].items():
            if not (folder / name).is_file() or file_checksum(folder / name) != checksum:
                raise InputError(f"{folder / name} is damaged", "the file as it was written", "Delete the folder.")
        self.folder, self.classes = folder, int(meta["classes"])
        arrays = {Path(name).stem: np.load(folder / name, mmap_mode="r") for name in meta["checksums"]}
        self.values, self.offsets = arrays["values"], arrays["offsets"]
        self.indices, self.tail = arrays.get("indices"), arrays.get("tail")
        self.rows = Rows(arrays["keys"])

    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """float32 `[B, C]` or `[B, L, C]` for a batch of model inputs; what lies behind a sequence's end is 0.

        Raises InputError for an example that the cache does not know.
        """
        rows = np.array([self._row(key) for key in example_keys(inputs)])
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        before = np.cumsum(lengths) - lengths  # items of the batch in front of each example's
        values = self._dense(np.repeat(self.offsets[rows] - before, lengths) + np.arange(lengths.sum()))
        device = next(value for value in inputs.values() if isinstance(value, Tensor)).device
        if LABELS not in inputs:
            return values.to(device)
        out = torch.zeros(*inputs[LABELS].shape, self.classes)
        out[torch.arange(out.shape[1]) < torch.from_numpy(lengths).unsqueeze(1)] = values
        return out.to(device)

    def _row(self, key: bytes) -> int:
        row = self.rows.of(key)
        if row is None:
            raise InputError(
                f"{self.folder} has no logits of an example that is trained on",
                "data that look the same in every epoch, or have so many augmentation_versions: no mixing",
                "Turn the teacher cache off, or augmentation.",
            )
        return row

    def _dense(self, items: np.ndarray) -> Tensor:
        """`[n, C]` of some items: the logits, or those that were kept, and the rest of the probability spread evenly over the
        others."""
        values = torch.from_numpy(self.values[items])
        if self.indices is None or self.tail is None:
            return values
        others = torch.from_numpy(self.tail[items]) - math.log(self.classes - values.shape[1])
        where = torch.from_numpy(self.indices[items]).long()
        return others.unsqueeze(-1).repeat(1, self.classes).scatter_(1, where, values)


class Rows:
    """Where each key stands among keys `[N, 16]`: 16 bytes of memory a key, where a dictionary takes 150."""

    def __init__(self, keys: np.ndarray) -> None:
        heads = np.ascontiguousarray(keys[:, :8]).view(np.uint64).ravel()
        self.keys, self.order = keys, np.argsort(heads, kind="stable")
        self.heads = heads[self.order]  # the first half of each key, sorted

    def of(self, key: bytes) -> int | None:
        """The first row of a key; None where there is none."""
        head = np.frombuffer(key[:8], np.uint64)[0]
        for place in range(*(int(np.searchsorted(self.heads, head, side)) for side in ("left", "right"))):
            if self.keys[self.order[place]].tobytes() == key:
                return int(self.order[place])
        return None


def open_cache(
    root: Path,
    made_of: Mapping[str, Any],
    batches: Callable[[], Iterable[Mapping[str, Any]]],
    ask: Callable[[Mapping[str, Any]], Tensor],
    items: Callable[[], int],
    top_k: int | None = None,
) -> TeacherCache:
    """The cache under `root` of what `made_of` names, filled first where it is not there: `ask` has the logits of each of
    `batches()`, `items()` images or target tokens in all. Its size is said before.

    Raises InputError as `TeacherCache` does, and when the disk is too small.
    """
    folder, made_of = cache_folder(root, made_of, top_k), described(made_of, top_k)
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=root))
        try:
            whole = own / "whole"  # not the temporary folder itself, which is its owner's alone
            whole.mkdir()
            fill(whole, made_of, batches(), ask, items(), top_k)
            put_in_place(whole, folder)
        finally:
            shutil.rmtree(own, ignore_errors=True)
    return TeacherCache(folder, made_of)


def described(made_of: Mapping[str, Any], top_k: int | None) -> dict[str, Any]:
    """What a cache was made of, with its own form."""
    return {**made_of, "format": FORMAT, "top_k": top_k}


def cache_folder(root: Path, made_of: Mapping[str, Any], top_k: int | None = None) -> Path:
    """Where the cache of what `made_of` names lies under `root`, whether it is there or not."""
    page = json.dumps(described(made_of, top_k), sort_keys=True)
    return root / hashlib.sha256(page.encode()).hexdigest()[:24]


def put_in_place(own: Path, folder: Path) -> None:
    """Rename a whole cache to its name, unless another process has been first."""
    try:
        os.rename(own, folder)
    except OSError:
        if not (folder / META).is_file():
            raise


def fill(
    folder: Path,
    made_of: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
    ask: Callable[[Mapping[str, Any]], Tensor],
    items: int,
    top_k: int | None,
) -> None:
    """Write the arrays of a cache and, last, its meta.json into an empty folder."""
    keys, ends = bytearray(), array("q", [0])  # not lists: a large data set has millions
    writer: Writer | None = None
    for inputs in batches:
        logits, lengths = ask(inputs), example_lengths(inputs)
        if writer is None:
            writer = Writer(folder, items, logits.shape[-1], top_k)
        for key, length, rows in zip(example_keys(inputs), lengths, logits):
            writer.write(rows[:length] if logits.dim() == 3 else rows.unsqueeze(0))
            keys += key
            ends.append(ends[-1] + length)
    if writer is None:
        raise InputError("a teacher cache of no examples", "a training set with at least one")
    writer.close()
    np.save(folder / "keys.npy", np.frombuffer(keys, np.uint8).reshape(len(ends) - 1, -1))
    np.save(folder / "offsets.npy", np.array(ends, np.int64))
    checksums = {path.name: file_checksum(path) for path in sorted(folder.glob("*.npy"))}
    meta = {"made_of": dict(made_of), "classes": writer.classes, "checksums": checksums}
    (folder / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")


class Writer:
    """The arrays of items, written as they come."""

    def __init__(self, folder: Path, items: int, classes: int, top_k: int | None) -> None:
        self.classes, self.at = classes, 0
        kept = classes if top_k is None else min(top_k, classes)
        self.whole = kept == classes
        size = items * (4 * kept + (0 if self.whole else 4 * kept + 4))
        free = shutil.disk_usage(folder).free
        asked = f" ({top_k} were asked for)" if top_k is not None and top_k > classes else ""
        logger.info(
            "Teacher cache: %d items of %d of %d classes%s, %.1f MiB.", items, kept, classes, asked, size / 2**20
        )
        if size > free:
            raise InputError(
                f"a teacher cache of {size / 2**30:.1f} GiB with {free / 2**30:.1f} GiB free",
                "room on the disk",
                "Keep fewer classes: switches: {teacher_cache: 64}, say.",
            )
        make = lambda name, shape, dtype: np.lib.format.open_memmap(  # noqa: E731
            folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape
        )
        self.values = make("values", (items, kept), np.float32)
        self.indices = None if self.whole else make("indices", (items, kept), np.int32)
        self.tail = None if self.whole else make("tail", (items,), np.float32)

    def write(self, logits: Tensor) -> None:
        """`[n, C]` of the next n items."""
        place = slice(self.at, self.at + len(logits))
        self.at += len(logits)
        logits = logits.float().cpu()
        if self.indices is None or self.tail is None:
            self.values[place] = logits.numpy()
            return
        kept, where = logits.topk(self.values.shape[1], dim=-1)
        self.values[place], self.indices[place] = kept.numpy(), where.numpy()
        self.tail[place] = logits.scatter(1, where, -torch.inf).logsumexp(-1).numpy()

    def close(self) -> None:
        if self.at != len(self.values):
            raise InputError(f"{self.at} items in place of {len(self.values)}", "data of equal length in every pass")
        for written in (self.values, self.indices, self.tail):
            if written is not None:
                written.flush()


# ---- What an example is


def example_keys(inputs: Mapping[str, Any]) -> list[bytes]:
    """A 128-bit hash of each example of a batch, of all that a teacher reads of it and nothing of its padding.

    Raises InputError for inputs that no cache knows.
    """
    known = {IMAGES} if IMAGES in inputs else {SOURCE, MASK, LABELS, DECODER_IDS}
    unknown = sorted(inputs.keys() - known)
    if unknown:
        raise InputError(f"a teacher cache for batches with {', '.join(unknown)}", ", ".join(sorted(known)))
    if IMAGES in inputs:
        return [digest(image.numpy()) for image in inputs[IMAGES].cpu().contiguous()]
    source, labels, mask, decoder = (
        None if inputs.get(name) is None else inputs[name].cpu().numpy() for name in (SOURCE, LABELS, MASK, DECODER_IDS)
    )
    assert source is not None
    mask = np.ones_like(source) if mask is None else mask
    sizes = lengths_of(mask != 0)
    keys = []
    for row, (size, length) in enumerate(zip(sizes, example_lengths(inputs))):
        said = () if decoder is None else (decoder[row, :length],)
        keys.append(digest(source[row, :size], mask[row, :size], labels[row, :length], *said))  # type: ignore[index]
    return keys


def example_lengths(inputs: Mapping[str, Any]) -> list[int]:
    """How many items each example has: one an image; target tokens up to the last that counts."""
    if IMAGES in inputs:
        return [1] * len(inputs[IMAGES])
    return lengths_of(inputs[LABELS].ne(IGNORE_INDEX).cpu().numpy())


def lengths_of(counts: np.ndarray) -> list[int]:
    """Of each row of `[B, L]` truths: the place behind the last one."""
    return list(((np.arange(counts.shape[1]) + 1) * counts).max(axis=1, initial=0).tolist())


def digest(*arrays: np.ndarray) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for part in arrays:
        found.update(f"{part.dtype.str}{part.shape}".encode())
        found.update(np.ascontiguousarray(part).data)
    return found.digest()


def data_digest(batches: Sequence[Mapping[str, Any]]) -> str:
    """A hash of the examples in some batches: what one data set is told from another by."""
    return hashlib.sha256(b"".join(key for inputs in batches for key in example_keys(inputs))).hexdigest()


def model_digest(model: nn.Module) -> str:
    """A hash of a model's configuration and of every weight and buffer."""
    found = hashlib.sha256(type(model).__name__.encode())
    config = getattr(model, "config", None)
    found.update(b"" if config is None else config.to_json_string().encode())
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


# ---- Files


def read_meta(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / META).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / META} is damaged ({error})", "a teacher cache", "Delete the folder.") from error


def file_checksum(path: Path) -> int:
    """CRC-32 of a file: it tells damage, not malice."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found = zlib.crc32(block, found)
    return found
