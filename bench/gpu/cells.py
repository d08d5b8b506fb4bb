"""Training through the ImageNet recipe from generated JPEG files: one cell with what limits it, and a column in lockstep."""

import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.gpu.lines import Line, kernel_state
from bench.gpu.sizes import Size

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "imagenet1k" / "resnet50_resnet18.yaml"


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


def column_part(size: Size) -> Iterator[Line]:
    from bench import column
    from bench.images import write_tree

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tree"
        write_tree(folder, min(size.pictures, size.column_steps * size.model["batch"]), *size.picture)
        os.environ["HF_LSKD_CACHE"] = str(Path(temporary) / "cache")
        for result in column.rows(1, RECIPE, settings(size, folder, size.column_steps)):
            yield {"row": result.row, "contestant": result.meaning, "ratio": result.ratio, "note": result.note}


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
