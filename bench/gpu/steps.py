"""A training step on a device: its time beside peers, the host's waits in it, and its kernels. Its data lie on the device."""

import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.gpu.lines import Line, kernel_state, ratio, short
from bench.gpu.sizes import Size


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
