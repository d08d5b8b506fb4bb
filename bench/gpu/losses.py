"""The losses on a device beside other ways to compute them, and the kernel with other blocks and warps."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from bench.gpu.lines import Line, kernel_state, ratio, short
from bench.gpu.sizes import Size


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
