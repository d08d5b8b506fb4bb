"""What a GPU does with it: one short script for whoever has one for a quarter of an hour.

    python -m bench.gpu [PART…] [--minutes 8] [--out FILE]
    python -m bench.gpu --device cpu --tiny     # the script itself, from end to end, where there is no GPU

Each part runs in a process of its own, so that none falls with another, and prints JSON lines as it goes; a table comes last. Parts,
in the order in which they matter:

    loss     value and gradient: naive, torch.compile of the plain composition, ours, Liger's where installed; time and memory
    step     a step of ResNet-50 → ResNet-18, 224 px, batch 256, bf16, channels_last: ours, bare loop, timm's task, plain Trainer
    syncs    waits of the host for the device per step: ours, plain Trainer with a teacher, stock Trainer without one
    cell     200 steps of the same through the ImageNet recipe from generated JPEG files: pictures a second, GPU use, what limits it
    profile  kernels of a few of our steps, and how long the GPU had nothing to do between them
    column   four temperatures in lockstep beside one by one, at that size
    shapes   the kernel with other blocks and warps, to choose its constants by

Data of loss, step, syncs and profile lie on the device. Nothing is written but to --out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.gpu import cells, losses, steps
from bench.gpu.lines import Line, short
from bench.gpu.sizes import TINY, Size

HOME = Path(__file__).resolve().parents[2]

MINUTES = 8.0

PARTS: dict[str, Callable[[Size], Iterator[Line]]] = {
    "loss": losses.loss_part, "step": steps.step_part, "syncs": steps.syncs_part, "cell": cells.cell_part,
    "profile": steps.profile_part, "column": cells.column_part, "shapes": losses.shapes_part,
}  # fmt: skip


def run_part(name: str, size: Size) -> None:
    """One part, in this process; its lines go to standard output."""
    try:
        for line in PARTS[name](size):
            print(json.dumps({"part": name, **line}, ensure_ascii=False), flush=True)
    except Exception as error:
        import traceback

        traceback.print_exc()
        print(json.dumps({"part": name, "error": short(error)}, ensure_ascii=False), flush=True)


def command_of(name: str, words: list[str]) -> list[str]:
    return [sys.executable, "-m", "bench.gpu", "--alone", name, *words]


def run_apart(name: str, words: list[str], seconds: float) -> Iterator[Line]:
    """One part in a process of its own, stopped after so many seconds; what it prints beside its lines is shown when it fails."""
    started, failed = time.monotonic(), False
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command_of(name, words), stdout=out, stderr=said, text=True, cwd=HOME)
        place = 0
        while True:
            ended = process.poll() is not None
            out.seek(place)
            for text in out.read().splitlines(keepends=True):
                if not text.endswith("\n") and not ended:
                    break
                place += len(text.encode())
                if text.startswith('{"part"'):
                    line = json.loads(text)
                    failed = failed or "error" in line
                    yield line
            if ended:
                break
            if time.monotonic() - started > seconds:
                process.kill()
                process.wait()
                yield {"part": name, "error": f"stopped after {seconds:.0f} s"}
                failed = True
                break
            time.sleep(0.1)
        if process.returncode and not failed:
            yield {"part": name, "error": f"ended with {process.returncode}"}
        if process.returncode or failed:
            said.seek(0)
            print(said.read()[-3000:], file=sys.stderr, flush=True)
    yield {"part": name, "seconds": round(time.monotonic() - started, 1)}


def table(lines: list[Line]) -> str:
    """A line of text for each line with a row."""
    found = []
    for line in lines:
        if "row" in line or "error" in line or "kernel" in line:
            rest = [
                f"{key} {value}"
                for key, value in line.items()
                if key not in ("part", "row", "contestant") and value != ""
            ]
            found.append(
                f"{line['part']:8s} {line.get('row', '')!s:32s} {line.get('contestant', '')!s:40.40s} {', '.join(rest)}"
            )
    return "\n".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which (default: all): {', '.join(PARTS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that show only that the script works")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="parts that begin later are left out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the lines go as well")
    parser.add_argument("--alone", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = Size(args.device, **(TINY if args.tiny else {"workers": min(os.cpu_count() or 1, 16)}))
    if args.alone:
        return run_part(args.alone, size)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    words = ["--device", args.device, *(["--tiny"] if args.tiny else [])]
    end, lines = time.monotonic() + 60 * args.minutes, []
    for name in args.parts or PARTS:
        left = end - time.monotonic()
        found = run_apart(name, words, left) if left > 5 else iter([{"part": name, "error": "no time left"}])
        for line in found:
            print(json.dumps(line, ensure_ascii=False), flush=True)
            lines.append(line)
            if args.out:
                args.out.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines))
    print("\n" + table(lines), flush=True)


if __name__ == "__main__":
    main()
