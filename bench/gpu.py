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
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]
MINUTES = 8.0
HOME = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    device: str
    losses: tuple[tuple[int, int], ...] = ((1024, 10_000), (256, 32_000), (256, 1_000))
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    kind: tuple[tuple[str, Any], ...] = (("student", "resnet18"), ("teacher", "resnet50"), ("classes", 1000), ("size", 224),
                                         ("batch", 256), ("bf16", True), ("channels_last", True))  # fmt: skip
    steps: int = 20  # of a slice
    rounds: int = 5
    cell_steps: int = 200
    pictures: int = 25_600
    picture: tuple[int, int] = (500, 375)
    workers: int = 16
    column_steps: int = 15

    @property
    def model(self) -> dict[str, Any]:
        return {**dict(self.kind), "device": self.device}


TINY: dict[str, Any] = {
    "losses": ((32, 100),), "steps": 2, "rounds": 2, "cell_steps": 3, "pictures": 16, "picture": (60, 45), "workers": 0,
    "column_steps": 2,
    "kind": (("student", "test_byobnet"), ("teacher", "test_byobnet"), ("classes", 10), ("size", 32), ("batch", 4),
             ("bf16", True), ("channels_last", True)),
}  # fmt: skip


# ---- Parts: each yields lines as it has them


def loss_part(size: Size) -> Iterator[Line]:
    import torch

    from bench.loss import run_of
    from bench.measure import alternate, peak_memory, timed

    if size.device == "cuda":
        yield {"bandwidth_gb_s": round(bandwidth(), 0), "gpu": torch.cuda.get_device_name()}
    for rows, classes in size.losses:
        for name in size.dtypes:
            dtype, logits = getattr(torch, name), rows * classes * getattr(torch, name).itemsize
            here = {"row": f"loss [{rows} × {classes}] {name}"}
            runs = {}
            for contestant, loss in contestants().items():
                try:
                    run = run_of(loss, rows, classes, size.device, dtype)
                    run()  # compiles
                    runs[contestant] = run
                except Exception as error:
                    yield {**here, "contestant": contestant, "error": short(error)}
            times = {name: max(1, int(0.02 / max(timed(run, 3, size.device)(), 1e-6))) for name, run in runs.items()}
            slices = {name: timed(run, min(times[name], 500), size.device) for name, run in runs.items()}
            seconds = alternate(slices, size.rounds)
            for contestant, run in runs.items():
                peak = peak_memory(run, size.device)
                yield {
                    **here, "contestant": contestant, "microseconds": round(1e6 * statistics.median(seconds[contestant]), 1),
                    "naive/it": round(ratio(seconds, "naive", contestant), 2) if "naive" in runs else None,
                    "memory_in_logits": None if peak is None else round(peak / logits, 2),
                }  # fmt: skip
    yield {"kernel": kernel_state()}


def contestants() -> dict[str, Callable[..., Any]]:
    """Functions of (student, teacher, labels) that give the loss; those of Liger where it is installed."""
    import torch
    import torch.nn.functional as F

    from bench.loss import TEMPERATURE, WEIGHT, naive, ours
    from hf_lskd.losses import Mixture, plain_terms

    def plain(student: Any, teacher: Any, labels: Any) -> Any:
        return plain_terms(student, teacher, labels, Mixture(TEMPERATURE, WEIGHT))[0].total

    torch._dynamo.config.recompile_limit = 64
    found = {"naive": naive, "plain": plain, "compiled": torch.compile(plain, dynamic=False), "ours": ours}
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss, LigerJSD, LigerKLDIVLoss
    except ImportError:
        return found
    kl, jsd, nll = LigerKLDIVLoss(reduction="batchmean"), LigerJSD(beta=0.0), LigerCrossEntropyLoss()

    def sides(student: Any, teacher: Any) -> tuple[Any, Any]:
        return F.log_softmax(student / TEMPERATURE, -1), F.log_softmax(teacher / TEMPERATURE, -1)

    def by_kl(student: Any, teacher: Any, labels: Any) -> Any:
        log_q, log_p = sides(student, teacher)  # Liger's cross-entropy writes into what it is given
        return (1 - WEIGHT) * nll(student.clone(), labels) + WEIGHT * TEMPERATURE**2 * kl(log_q, log_p.exp())

    def by_jsd(student: Any, teacher: Any, labels: Any) -> Any:
        return (1 - WEIGHT) * nll(student.clone(), labels) + WEIGHT * TEMPERATURE**2 * jsd(*sides(student, teacher))

    return {**found, "Liger KLDiv + CE": by_kl, "Liger JSD(0) + CE": by_jsd}


def kernel_state() -> str:
    """Whether our Triton kernel was what ran."""
    from hf_lskd import losses_triton

    if losses_triton._distrusted:
        return f"not used: {losses_triton._distrusted[0]}"
    return f"used, {len(losses_triton._trusted)} kinds checked" if losses_triton._trusted else "not asked for"


def bandwidth() -> float:
    """GB a second of a copy on the device, bytes read and written."""
    import torch

    from bench.measure import timed

    source = torch.empty(2**29, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    run = timed(lambda: target.copy_(source), 20, "cuda")
    run()
    return 2 * source.numel() / run() / 1e9


def shapes_part(size: Size) -> Iterator[Line]:
    import torch

    from bench.loss import ours, run_of
    from bench.measure import timed
    from hf_lskd import losses_triton

    usual = losses_triton.shape_of
    for rows, classes in size.losses:
        whole = 1 << (classes - 1).bit_length()
        blocks = sorted({block for block in (1024, 2048, 4096, 8192, whole) if 512 <= block <= min(whole, 2**15)})
        for block, warps in [
            (block, warps) for block in blocks for warps in (4, 8, 16) if 64 <= block // warps <= 1024
        ]:
            losses_triton.shape_of = lambda classes, chosen=(block, warps): chosen  # type: ignore[assignment,misc]
            try:
                run = run_of(ours, rows, classes, size.device, torch.bfloat16)
                run()
                slices = [timed(run, 50, size.device)() for _ in range(4)][1:]
                took = round(1e6 * statistics.median(slices), 1)
                yield {"row": f"kernel [{rows} × {classes}] bfloat16", "contestant": f"block {block}, {warps} warps",
                       "microseconds": took, "usual": (block, warps) == usual(classes)}  # fmt: skip
            except Exception as error:
                yield {"row": f"kernel [{rows} × {classes}]", "contestant": f"{block}, {warps}", "error": short(error)}
    losses_triton.shape_of = usual
    yield {"kernel": kernel_state()}


def step_part(size: Size) -> Iterator[Line]:
    from bench.measure import alternate
    from bench.step import NaiveTrainer, bare, noise, timms, trainer_slice
    from hf_lskd import DistillationTrainer

    kind, steps = size.model, size.steps
    data = noise(kind, steps)
    with tempfile.TemporaryDirectory() as folder:
        makers: dict[str, Callable[[], Any]] = {
            "ours": lambda: trainer_slice(DistillationTrainer, kind, data, steps, folder),
            "bare loop": lambda: bare(kind, data, steps),
            "timm": lambda: timms(kind, data, steps),
            "plain Trainer": lambda: trainer_slice(NaiveTrainer, kind, data, steps, folder),
        }
        slices = {}
        for name, make in makers.items():
            try:
                slices[name] = make()
                slices[name]()
            except Exception as error:
                slices.pop(name, None)
                yield {"row": "KD step", "contestant": name, "error": short(error)}
        seconds = alternate(slices, size.rounds)
    for name, times in seconds.items():
        yield {"row": "KD step", "contestant": name, "milliseconds": round(1e3 * statistics.median(times), 2),
               "images_per_second": round(kind["batch"] / statistics.median(times), 1),
               "it/bare loop": round(ratio(seconds, name, "bare loop"), 3) if "bare loop" in seconds else None}  # fmt: skip
    yield {"kernel": kernel_state()}


def syncs_part(size: Size) -> Iterator[Line]:
    import torch
    from transformers import Trainer, TrainerCallback

    from bench.step import NaiveTrainer, noise, trainer_of
    from hf_lskd import DistillationTrainer

    class Counted(TrainerCallback):
        """torch's warnings of waiting for the device, between the ends of the second step and the last."""

        def __init__(self) -> None:
            self.catch, self.found, self.steps = warnings.catch_warnings(record=True), Counter[str](), 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == min(2, size.steps - 1):
                self.begun, self.seen = state.global_step, self.catch.__enter__()
                warnings.simplefilter("always")
                if size.device == "cuda":
                    torch.cuda.set_sync_debug_mode("warn")
            elif state.global_step == state.max_steps:
                if size.device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
                self.found = Counter(f"{Path(w.filename).parent.name}/{Path(w.filename).name}:{w.lineno}"
                                     for w in self.seen if "synchroniz" in str(w.message))  # fmt: skip
                self.steps = state.global_step - self.begun
                self.catch.__exit__(None, None, None)

    kind = size.model
    data = noise(kind, size.steps)
    for name, trainer_class in (
        ("ours", DistillationTrainer),
        ("plain Trainer", NaiveTrainer),
        ("stock Trainer", Trainer),
    ):
        try:
            counted = Counted()
            with tempfile.TemporaryDirectory() as folder:
                trainer_of(trainer_class, kind, data, size.steps, folder, counted).train()
            yield {"row": "waits for the device", "contestant": name, "steps": counted.steps,
                   "per_step": round(counted.found.total() / counted.steps, 2), "where": counted.found.most_common(6),
                   "note": "" if size.device == "cuda" else "nothing to wait for on a CPU"}  # fmt: skip
        except Exception as error:
            yield {"row": "waits for the device", "contestant": name, "error": short(error)}


def profile_part(size: Size) -> Iterator[Line]:
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    from bench.step import noise, trainer_of
    from hf_lskd import DistillationTrainer

    on_gpu = size.device == "cuda"
    few = min(size.steps, 8)
    profiler = profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU] if on_gpu else [ProfilerActivity.CPU])

    class Window(TrainerCallback):
        """The profiler is on from the end of an early step to the end of the last."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == few // 2:
                profiler.start()
            elif state.global_step == state.max_steps:
                if on_gpu:
                    import torch

                    torch.cuda.synchronize()
                profiler.stop()

    kind = size.model
    with tempfile.TemporaryDirectory() as folder:
        trainer_of(DistillationTrainer, kind, noise(kind, few), few, folder, Window()).train()
    steps = few - few // 2
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    averages = [event for event in profiler.key_averages() if not on_gpu or is_kernel(event)]
    averages.sort(key=lambda event: getattr(event, key), reverse=True)
    total = sum(getattr(event, key) for event in averages) or 1
    for event in averages[:15]:
        yield {"row": "profile", "contestant": event.key[:90], "ms_per_step": round(getattr(event, key) / 1e3 / steps, 3),
               "share": round(getattr(event, key) / total, 3), "calls_per_step": round(event.count / steps, 1)}  # fmt: skip
    if on_gpu:
        yield {"row": "profile", **gaps(profiler, steps)}


def is_kernel(event: Any) -> bool:
    """Whether the device itself did this: a kernel or a copy, no operator or annotation around some."""
    from torch.autograd import DeviceType

    return event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)


def gaps(profiler: Any, steps: int) -> Line:
    """How long the device was busy, how long it was not, and its longest pauses, from the kernels' own intervals."""
    spans = sorted((event.time_range.start, event.time_range.end) for event in profiler.events() if is_kernel(event))
    busy, pauses, end = 0.0, [], spans[0][0]
    for start, stop in spans:
        if start > end:
            pauses.append(start - end)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    wall = end - spans[0][0]
    return {"contestant": "device", "busy_share": round(busy / wall, 3), "wall_ms_per_step": round(wall / 1e3 / steps, 2),
            "longest_pauses_us": [round(pause) for pause in sorted(pauses, reverse=True)[:5]]}  # fmt: skip


def settings(size: Size, data: Path, steps: int) -> list[str]:
    """The ImageNet recipe on generated pictures, a few steps of it."""
    kind = size.model
    found = [f"data.path={data}", "data.subset=true", f"data.image_size={kind['size']}", f"training.max_steps={steps}",
             f"training.per_device_train_batch_size={kind['batch']}", f"training.dataloader_num_workers={size.workers}",
             "eta=null", "projection=null", f"teacher.model={kind['teacher']}"]  # fmt: skip
    found.append(f"students=[{{name: student, model: {kind['student']}}}]")
    if size.workers == 0:
        found += ["training.dataloader_persistent_workers=false", "training.dataloader_prefetch_factor=null"]
    return found + (["training.use_cpu=true"] if size.device == "cpu" else [])


RECIPE = HOME / "recipes" / "imagenet1k" / "resnet50_resnet18.yaml"


def column_part(size: Size) -> Iterator[Line]:
    from bench import column
    from bench.images import write_tree

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tree"
        write_tree(folder, min(size.pictures, size.column_steps * size.model["batch"]), *size.picture)
        os.environ["HF_LSKD_CACHE"] = str(Path(temporary) / "cache")
        for result in column.rows(1, RECIPE, settings(size, folder, size.column_steps)):
            yield {"row": result.row, "contestant": result.meaning, "ratio": result.ratio, "note": result.note}


def cell_part(size: Size) -> Iterator[Line]:
    from bench import column
    from bench.images import write_tree
    from bench.measure import now
    from bench.step import Clock
    from hf_lskd.record import MODEL
    from hf_lskd.study.bench import open_bench
    from hf_lskd.study.quiet import quiet_libraries

    quiet_libraries()
    batch = size.model["batch"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tree"
        weight = write_tree(folder, size.pictures, *size.picture)
        os.environ["HF_LSKD_CACHE"] = str(Path(temporary) / "cache")
        bench = open_bench(column.recipe_for(RECIPE, settings(size, folder, size.cell_steps)))
        cell = column.students(bench.recipe)[1]
        teacher = Path(temporary) / "teacher" / MODEL
        teacher.parent.mkdir()
        bench.task.save(bench.task.build(cell.teacher), bench.task.spec(cell.teacher), teacher)
        clock = Clock()
        trainer = bench.task.trainer(cell, Path(temporary) / "cell", teachers=[teacher], callbacks=[clock])
        trainer.teacher.reported = True
        with Use(size.device) as use:
            trainer.train()
        training = batch / clock.seconds
        yield {"row": "cell", "contestant": "training", "images_per_second": round(training, 1), "steps": size.cell_steps,
               "picture_kb": round(weight / 1000, 1), "workers": size.workers, **use.summary()}  # fmt: skip
        started, seen = now(size.device), 0
        for index, rows in enumerate(trainer.get_train_dataloader()):
            if index <= size.workers:  # what the workers begin with comes all at once
                started = now(size.device)
                continue
            seen += len(rows["labels"])
            if index >= size.cell_steps // 2:
                break
        alone = seen / (now(size.device) - started)
        yield {"row": "cell", "contestant": "pipeline alone", "images_per_second": round(alone, 1),
               "training/it": round(training / alone, 2)}  # fmt: skip
    limit = "the pictures' pipeline" if training > 0.85 * alone else "the step"
    yield {"row": "cell", "contestant": "limited by", "note": limit, "kernel": kernel_state()}


class Use:
    """What nvidia-smi says of the GPU while something runs."""

    def __init__(self, device: str) -> None:
        self.device, self.lines = device, ""

    def __enter__(self) -> "Use":
        words = [
            "nvidia-smi",
            "--query-gpu=utilization.gpu,memory.used",
            "--format=csv,noheader,nounits",
            "-lms",
            "250",
        ]
        try:
            self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True) if self.device == "cuda" else None
        except OSError:
            self.process = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.lines = self.process.communicate()[0]

    def summary(self) -> Line:
        pairs = [line.split(",") for line in self.lines.splitlines() if line.count(",") == 1]
        used = [float(use) for use, _ in pairs if use.strip().isdigit()]
        used = used[len(used) // 3 :]  # what comes first is making models and starting workers
        if not used:
            return {"gpu_use_percent": None}
        return {"gpu_use_percent": round(statistics.mean(used), 1), "gpu_use_median": statistics.median(used),
                "memory_mb": max(float(memory) for _, memory in pairs)}  # fmt: skip


PARTS: dict[str, Callable[[Size], Iterator[Line]]] = {
    "loss": loss_part, "step": step_part, "syncs": syncs_part, "cell": cell_part, "profile": profile_part,
    "column": column_part, "shapes": shapes_part,
}  # fmt: skip


# ---- Running them


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under]))


def short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


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
