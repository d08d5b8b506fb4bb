"""The arguments of `hf-lskd export` and what it prints."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMATS = ("onnx", "ctranslate2", "torch")
HELP = "take a finished model to ONNX, CTranslate2 or torch.export, and measure it beside torch"
EXAMPLE = "hf-lskd export runs/glyphs/cells/student-a0-T1-s2 --format onnx --int8"


def add_export(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=Path, metavar="MODEL", help="a finished cell's folder, or a saved model's")
    text = "onnx (images), ctranslate2 (translation), torch (images; a .pt2 program)"
    sub.add_argument("--format", choices=FORMATS, required=True, help=text)
    sub.add_argument("--int8", action="store_true", help="weights (and activations, in ONNX) of 8 bits")
    text = "a recipe whose data judge the export, and calibrate it (default: the cell's own)"
    sub.add_argument("--data", type=Path, metavar="RECIPE", help=text)
    text = "the folder to make (default: exports/NAME-FORMAT[-int8]); an earlier export there is replaced"
    sub.add_argument("--output", type=Path, metavar="DIR", help=text)
    text = "top-1 or BLEU points that --int8 may cost (default: 1.0); one that costs more is not kept"
    sub.add_argument("--max-loss", type=float, default=1.0, metavar="POINTS", help=text)


def run_export(args: Any) -> int:
    from transformers.utils import logging

    from hf_lskd.hub.export import export_model

    logging.disable_progress_bar()
    options = {"int8": args.int8, "data": args.data, "output": args.output, "max_loss": args.max_loss}
    folder, made = export_model(args.model, args.format, **options)
    for line in summary(made):
        print(line)
    print(folder)
    return 0


def summary(made: Mapping[str, Any]) -> list[str]:
    """What an export.json says, in a few lines."""
    agreement, size, latency = made["agreement"], made["size_bytes"], made["latency_ms"]
    lines = [
        f"{name} {value['before']:.2f} in torch, {value['after']:.2f} exported"
        for name, value in made["metrics"].items()
    ]
    lines.append(f"{agreement['of']}: at most {agreement['largest_difference']:.2g} apart, {agreement['words']}")
    lines.append(f"size {size['before'] / 1e6:.2f} MB, {size['after'] / 1e6:.2f} MB exported")
    shown = [
        f"{latency[side]['median']:.2f} ms ({latency[side]['q1']:.2f} to {latency[side]['q3']:.2f})" for side in SIDES
    ]
    threads = f"{latency['threads']} thread{'s' * (latency['threads'] > 1)}"
    lines.append(f"latency at batch 1, {threads}: {shown[0]} in torch, {shown[1]} exported")
    return lines


SIDES = ("before", "after")
