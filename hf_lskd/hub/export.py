"""A finished model, taken to where neither torch nor this library runs, and judged there beside torch."""

import importlib
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError, nearest
from hf_lskd.hub.export_command import FORMATS
from hf_lskd.hub.export_source import IMAGES, TRANSLATION, Source, open_source
from hf_lskd.record import EXPORT, hardware, versions, write_json

HOLDS = {"onnx": IMAGES, "torch": IMAGES, "ctranslate2": TRANSLATION}  # what a format is for here
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "ctranslate2": ("ctranslate2",), "torch": ()}


def export_model(
    model: Path,
    format: str,
    *,
    int8: bool = False,
    data: Path | None = None,
    output: Path | None = None,
    max_loss: float = 1.0,
) -> tuple[Path, dict[str, Any]]:
    """Export the model in a cell's folder or in its own; returns the new folder and what its export.json says.

    The export is run beside torch on the validation data of the recipe `data`, else of the cell's own; where there are none,
    on random input. It is not kept when its numbers differ from torch's beyond tolerance, or, with `int8`, when it costs more
    than `max_loss` points of top-1 or BLEU.
    Raises InputError for that, for a model or data that cannot be read, an architecture that the format cannot hold, a
    package that is missing, `int8` without data, and an output folder that holds something else.
    """
    check_options(format, int8, max_loss)
    source = open_source(model, data)
    check_kind(source, format)
    for package in PACKAGES[format]:
        needs(package)
    if int8 and source.recipe is None:
        raise InputError("--int8 for a model without data to judge it by", "--data RECIPE, or a cell's folder")
    folder = output or Path("exports") / f"{source.name}-{format}{'-int8' * int8}"
    check_output(folder, source)
    target = folder.resolve()
    work = target.with_name(f".{target.name}.partial")
    try:
        make_empty(work)
        made = write(source, format, int8, work)
        check_loss(made["metrics"], max_loss, int8)
        made = {**whole(source, format, int8, work), **made, "max_loss": max_loss if int8 else None}
        write_json(work / EXPORT, made)
        replace_folder(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder, made


def write(source: Source, format: str, int8: bool, work: Path) -> dict[str, Any]:
    if format == "ctranslate2":
        from hf_lskd.hub.export_translation import write_ctranslate2

        return write_ctranslate2(source, work, int8)
    from hf_lskd.hub.export_images import write_image_model

    return write_image_model(source, format, work, int8)


def whole(source: Source, format: str, int8: bool, work: Path) -> dict[str, Any]:
    """What is said of every export: its files, where it came from, and with which versions on which machine it was made."""
    files = {file.name: file.stat().st_size for file in sorted(work.iterdir())}
    return {
        "export": 1,
        "format": format,
        "int8": int8,
        "task": source.kind,
        "source": source.facts(),
        "files": files,
        "versions": {**versions(), **{package: version_of(package) for package in PACKAGES[format]}},
        "hardware": hardware(),
    }


# ---- Refusals


def check_options(format: str, int8: bool, max_loss: float) -> None:
    if format not in FORMATS:
        raise InputError(f"--format {format}", ", ".join(FORMATS), nearest(format, FORMATS))
    if not (math.isfinite(max_loss) and max_loss >= 0):
        raise InputError(f"--max-loss {max_loss:g}", "a number of points from 0")
    if int8 and format == "torch":
        raise InputError("--int8 with --format torch", "--int8 with onnx or ctranslate2")


def check_kind(source: Source, format: str) -> None:
    """Raise InputError for a model of another kind of work than the format is for here."""
    if HOLDS[format] == source.kind:
        return
    model = source.config.get("model_type", "unknown")
    if source.kind == IMAGES:
        raise InputError(
            f"--format {format} for {source.folder}, which is no translation model ({model})", "onnx or torch"
        )
    raise InputError(
        f"--format {format} for {source.folder}, a translation model ({model})",
        "ctranslate2, for Marian",
        "Such a graph would only score translations: the search that makes them is not in it.",
    )


def check_loss(metrics: Mapping[str, Any], max_loss: float, int8: bool) -> None:
    """Raise InputError for an int8 export that costs too much."""
    for name, value in metrics.items() if int8 else ():
        if not value["before"] - value["after"] <= max_loss:
            raise InputError(
                f"the int8 export has {name} {value['after']:.2f} where torch has {value['before']:.2f}",
                f"a loss of at most {max_loss:g} points",
                "It was not kept. Leave out --int8, or say by --max-loss what it may cost.",
            )


def needs(package: str) -> None:
    """Raise InputError, naming the extra, for a package that is not installed."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"the package {package} is not installed", "an environment with it", "Run `pip install 'hf_lskd[export]'`."
        ) from error


def version_of(package: str) -> str:
    from importlib.metadata import version

    return version(package)


# ---- The folder


def check_output(folder: Path, source: Source) -> None:
    """Raise InputError for an output folder that is a file, or holds anything but an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file", "a new folder, or an earlier export's")
    if folder.resolve() in (source.folder, *source.folder.parents):
        raise InputError(f"--output {folder} holds the model itself", "another folder")
    foreign = sorted({file.name for file in folder.iterdir()} - earlier(folder)) if folder.is_dir() else []
    if foreign:
        raise InputError(
            f"--output {folder} holds {foreign[0]}, which is no part of an export",
            "a new or empty folder, or an earlier export's",
        )


def earlier(folder: Path) -> set[str]:
    """The names of an earlier export's files."""
    from hf_lskd.models.files import read_json

    try:
        return {EXPORT, *read_json(folder / EXPORT)["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def make_empty(work: Path) -> None:
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"--output {work.parent} cannot be written ({error.strerror})", "a folder that this user may write to"
        ) from error


def replace_folder(work: Path, folder: Path) -> None:
    """The finished export in the place of an earlier one."""
    if folder.is_dir():
        shutil.rmtree(folder)
    os.replace(work, folder)
