"""Image classifiers as an ONNX graph or a torch.export program, and what they say beside torch."""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hf_lskd import models
from hf_lskd.errors import InputError
from hf_lskd.hub.export_source import Source
from hf_lskd.hub.latency import side_by_side
from hf_lskd.models.files import first_line
from hf_lskd.record import write_json

PREPARATION = "preprocessing.json"
GRAPH, PROGRAM = "model.onnx", "model.pt2"
INPUT, OUTPUT = "pixel_values", "logits"
TOLERANCE = (
    1e-4  # of the largest logit: float32 in another order of sums (measured: 4e-7 for the glyph students, 9e-6 for BiT)
)
BATCH = 64
CALIBRATION = 512  # pictures that the ranges of activations are taken from; four times as many give the same accuracy
RANDOM = 67  # pictures of noise where there are no data: one whole batch and a ragged one

Run = Callable[[Tensor], Tensor]


class Logits(nn.Module):
    """A transformers classifier as a function of the pictures `[N, 3, H, W]` alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).logits


class Comparison(NamedTuple):
    """Torch and the export on the same pictures. Differences are of logits, `scale` is the largest logit of torch's."""

    seen: int
    same: int
    before: int | None  # right answers; None without labels
    after: int | None
    difference: float
    scale: float


def write_image_model(source: Source, format: str, work: Path, int8: bool) -> dict[str, Any]:
    """Write graph or program and preparation into `work`; returns the parts of export.json that are of this kind.

    Raises InputError for a model that cannot be traced, and for one whose float export differs from torch.
    """
    model = Logits(models.load_trained(str(source.folder)).float()).eval().requires_grad_(False)
    preparation = preparation_of(source, model.model)
    example = torch.randn(2, *preparation["input"]["shape"][1:], generator=torch.Generator().manual_seed(0))
    program = traced(model, example)
    if format == "torch":
        torch.export.save(program, work / PROGRAM)
        run = program_runner(work / PROGRAM)
    else:
        to_onnx(program, example, work / GRAPH)
        run = graph_runner(work / GRAPH)
    found = compared(source, model, run, example)
    check_agreement(found, format)
    if int8:
        quantise(work / GRAPH, source)
        run = graph_runner(work / GRAPH)
        found = compared(source, model, run, example)
    write_json(work / PREPARATION, preparation)
    one = next(pictures(source, example, 1))[0]
    return {
        **measured(found, source, int8),
        "size_bytes": {
            "before": source.size,
            "after": (work / (PROGRAM if format == "torch" else GRAPH)).stat().st_size,
        },
        "latency_ms": {
            **side_by_side(lambda _: model(one), lambda _: run(one)),
            **{"batch": 1, "threads": torch.get_num_threads(), "of": "one picture, prepared"},
        },
        "preparation": PREPARATION,
    }


def preparation_of(source: Source, model: Any) -> dict[str, Any]:
    """How a picture becomes the input, in numbers and words: what a device has to do by itself."""
    task: Any = source.task
    config: dict[str, Any] = own_config(source) if task is None else task.data_config(source.spec)
    names = model.config.id2label or {}
    classes = [names[i] for i in sorted(names)] or None
    size = [int(side) for side in config["input_size"]]
    return {
        "input": {"name": INPUT, "shape": ["batch", *size], "type": "float32", "channels": "RGB", "range": "[0, 1]"},
        "output": {"name": OUTPUT, "shape": ["batch", models.num_classes(model)], "classes": classes},
        "resize": {
            "shorter_side": int(np.floor(min(size[1:]) / (config.get("crop_pct") or 1.0))),
            "interpolation": config.get("interpolation") or "bicubic",
            "mode": config.get("crop_mode") or "center",
        },
        "crop": size[1:],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "words": "resize, crop the centre, divide by 255, subtract mean and divide by std a channel",
    }


def own_config(source: Source) -> dict[str, Any]:
    """timm's keys from what lies in the model's folder. Raises InputError where it does not say size, mean and std."""
    found = models.pretrained_cfg(str(source.folder))
    lost = [key for key in ("input_size", "mean", "std") if not found.get(key)]
    if lost:
        raise InputError(
            f"{source.folder} does not say how its images are prepared ({', '.join(lost)})",
            "a model with its preprocessor_config.json or pretrained_cfg",
            "Save its image processor beside it, or give --data RECIPE.",
        )
    return found


# ---- Writing


def traced(model: nn.Module, example: Tensor) -> Any:
    """The model as a torch.export program for any batch. Raises InputError where it cannot be one."""
    try:
        with quiet():
            return torch.export.export(model, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}})
    except Exception as error:  # torch has many kinds for code that it cannot trace
        name = type(getattr(model, "model", model)).__name__
        raise InputError(f"{name} cannot be traced ({first_line(error)})", "a model that torch.export takes") from error


def to_onnx(program: Any, example: Tensor, path: Path) -> None:
    options: dict[str, Any] = {
        "input_names": [INPUT],
        "output_names": [OUTPUT],
        "external_data": False,
        "verbose": False,
    }
    try:
        with quiet():
            torch.onnx.export(program, (example,), path, dynamo=True, **options)
    except Exception as error:
        raise InputError(f"no ONNX of this model ({first_line(error)})", "a model whose operators ONNX has") from error


def quantise(path: Path, source: Source) -> None:
    """The graph in place with int8 weights a channel: activations too, by ranges of training pictures, where it convolves;
    where it hardly does (a ViT), ranges are taken at each run."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain, done = (path.with_name(f".{name}.onnx") for name in ("plain", "int8"))
    quant_pre_process(str(path), str(plain))
    if sum(node.op_type == "Conv" for node in onnx.load(str(plain)).graph.node) > 1:
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(
            str(plain), str(done), training_pictures(source), quant_format=QuantFormat.QDQ, per_channel=True, **types
        )
    else:
        quantize_dynamic(str(plain), str(done), weight_type=QuantType.QInt8, per_channel=True)
    plain.unlink()
    os.replace(done, path)


def training_pictures(source: Source) -> Any:
    """An even sample of the training split under the evaluation transform, as onnxruntime's calibration reads it."""
    from onnxruntime.quantization import CalibrationDataReader

    dataset = dataset_of(source, "train")
    chosen = np.linspace(0, len(dataset) - 1, min(CALIBRATION, len(dataset))).astype(int).tolist()
    batches = (chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH))

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            keys = next(batches, None)
            return None if keys is None else {INPUT: batch_of(dataset, keys)[0].numpy()}

    return Reader()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' notes and deprecation warnings: they are about torch's own code."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


# ---- Running


def graph_runner(path: Path) -> Run:
    """An ONNX graph in onnxruntime, on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def program_runner(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda images: module(images)


def dataset_of(source: Source, split: str) -> Any:
    task: Any = source.task
    return task.dataset(source.spec, split, train=False)


def batch_of(dataset: Any, keys: list[int]) -> tuple[Tensor, Tensor]:
    rows = dataset.__getitems__(keys)
    return torch.stack([row[INPUT] for row in rows]), torch.tensor([row["labels"] for row in rows])


def pictures(source: Source, example: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of the validation data in order; of noise, without labels, where there are no data."""
    if source.recipe is None:
        noise = torch.randn(RANDOM, *example.shape[1:], generator=torch.Generator().manual_seed(1))
        yield from ((part, None) for part in noise.split(size))
        return
    dataset = dataset_of(source, "validation")
    for start in range(0, len(dataset), size):
        yield batch_of(dataset, list(range(start, min(start + size, len(dataset)))))


@torch.no_grad()
def compared(source: Source, model: nn.Module, run: Run, example: Tensor) -> Comparison:
    """Torch and the export over the whole validation data."""
    count = same = before = after = 0
    difference = scale = 0.0
    labelled = True
    for images, labels in pictures(source, example, BATCH):
        expected, found = model(images), run(images)
        said, told = expected.argmax(1), found.argmax(1)
        count, same = count + len(images), same + int((said == told).sum())
        gap = (expected - found).abs().max()
        difference = max(difference, float(gap) if bool(torch.isfinite(found).all()) else float("inf"))
        scale = max(scale, float(expected.abs().max()))
        labelled = labels is not None
        if labels is not None:
            before, after = before + int((said == labels).sum()), after + int((told == labels).sum())
    return Comparison(count, same, before if labelled else None, after if labelled else None, difference, scale)


def check_agreement(found: Comparison, format: str) -> None:
    """Raise InputError for a float export that says something else than torch."""
    if found.difference > TOLERANCE * found.scale:
        raise InputError(
            f"the {format} export differs from torch by {found.difference:.2g} in logits of up to {found.scale:.2g}",
            f"{TOLERANCE:g} of the largest logit",
            "It was not kept: it is not the model that was trained.",
        )


def measured(found: Comparison, source: Source, int8: bool) -> dict[str, Any]:
    """Agreement and top-1 as export.json has them."""
    what = "noise, since no data were given" if source.recipe is None else "pictures of the validation split"
    metrics: Mapping[str, Any] = {}
    if found.before is not None and found.after is not None:
        metrics = {"top1": {"before": 100 * found.before / found.seen, "after": 100 * found.after / found.seen}}
    return {
        "metrics": metrics,
        "agreement": {
            "of": "logits",
            "on": what,
            "examples": found.seen,
            "same_top1": found.same,
            "largest_difference": found.difference,
            "largest_logit": found.scale,
            "tolerance": None if int8 else TOLERANCE * found.scale,
            "words": f"the same class for {found.same} of {found.seen} {'noise' if source.recipe is None else 'pictures'}",
        },
    }
