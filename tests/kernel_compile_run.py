"""Compile the losses' kernels for GPUs that are not here, as `losses_triton` launches them, and print what the assembler says."""

import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from hf_lskd import losses_kernel, losses_triton
from hf_lskd.losses import Mixture
from hf_lskd.losses_rows import Batch, Weights


class Compiled:
    """A kernel that is compiled where it would be launched."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self.kernel, self.capability = kernel, capability

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            made = self.kernel.warmup(*args, grid=grid, **kwargs)
            assert len(made.asm["cubin"]) > 1000
            print(self.capability, grid, made.metadata.name, assembled(made.asm["ptx"], self.capability), flush=True)

        return launch


def assembled(ptx: str, capability: int) -> str:
    """The assembler's line on spilled registers."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "kernel.ptx"
        text.write_text(ptx)
        name = f"sm_{capability}{'a' if capability == 90 else ''}"
        words = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={name}", str(text), "-o", str(text.with_suffix(".cubin"))]
        said = subprocess.run(words, capture_output=True, text=True, check=True)
    return next(line for line in (said.stdout + said.stderr).splitlines() if "spill" in line)


def main() -> None:
    real = losses_kernel.rows_kernel, losses_kernel.scale_kernel
    for capability in (80, 90):
        driver.set_active(SimpleNamespace(
            get_current_target=lambda capability=capability: GPUTarget("cuda", capability, 32),
            get_current_device=lambda capability=capability: capability,  # what is compiled is kept by device
            get_current_stream=lambda device: 0,
        ))  # fmt: skip
        losses_kernel.rows_kernel, losses_kernel.scale_kernel = (Compiled(kernel, capability) for kernel in real)
        for dtype, rows, classes, mixture in (
            (torch.bfloat16, 256, 1000, Mixture(2.0, 0.3, 0.1)), (torch.float32, 16, 8192, Mixture(2.0, 0.3, 0.1)),
            (torch.bfloat16, 1, 32_003, Mixture(3.0, 0.5)), (torch.float16, 7, 141, Mixture(1.0, 1.0)),
        ):  # fmt: skip
            logits, labels = torch.zeros(rows, classes, dtype=dtype), torch.zeros(rows, dtype=torch.long)
            batch = Batch(logits, logits, labels, labels.ne(-100), torch.ones(()))
            losses_triton.kernel_pass(batch, mixture, Weights(1 - mixture.kd_weight, mixture.kd_weight), True)
            losses_triton.kernel_pass(batch, mixture, Weights(torch.ones(()), torch.ones(())), False)
            losses_triton.kernel_pass(batch, mixture, None, True)
            alone = batch._replace(teacher=None)
            losses_triton.kernel_pass(alone, Mixture(kd_weight=0.0, smoothing=0.1), Weights(1.0, 0.0), False)
            losses_triton.kernel_pass(batch._replace(labels=None, keep=None), Mixture(2.0), Weights(0.0, 1.0), False)
        losses_triton.scaled(torch.ones(5, 7, dtype=torch.bfloat16), torch.ones(()))


if __name__ == "__main__":
    main()
