"""Compile the kernels of the losses to machine code for sm_80 and sm_90, and print what the assembler says of each."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_lskd.losses_kernel import rows_kernel, scale_kernel
from hf_lskd.losses_triton import shape_of

ALL = {"TAUGHT": True, "HARD": True, "MASKED": True, "SMOOTH": True, "SAME": False, "READ": True, "GRADIENT": True,
       "HARD_SLOPE": True, "SOFT_SLOPE": True}  # fmt: skip
SIZED = ("student", "teacher", "gradient")
INTEGERS = ("student_stride", "teacher_stride", "rows", "classes", "numbers")
POINTERS = {"labels": "*i64", "keep": "*u8", "divisor": "*fp32", "upstream": "*fp32", "values": "*fp32", "by": "*fp32"}
ALONE = {**ALL, "TAUGHT": False, "READ": False, "SOFT_SLOPE": False}
SOFT = {**ALL, "HARD": False, "MASKED": False, "SMOOTH": False, "READ": False, "HARD_SLOPE": False}


def signature(kernel: Any, dtype: str, constants: dict[str, Any]) -> dict[str, str]:
    def of(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in SIZED:
            return "*" + dtype
        return "i32" if name in INTEGERS else POINTERS.get(name, "fp32")

    return {name: of(name) for name in kernel.arg_names}


def compiled(kernel: Any, dtype: str, capability: int, constants: dict[str, Any], warps: int) -> str:
    """The assembler's line on spilled registers."""
    source = ASTSource(fn=kernel, signature=signature(kernel, dtype, constants), constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert len(made.asm["cubin"]) > 1000
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "kernel.ptx"
        text.write_text(made.asm["ptx"])
        name = f"sm_{capability}{'a' if capability == 90 else ''}"
        words = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={name}", str(text), "-o", str(text.with_suffix(".cubin"))]
        said = subprocess.run(words, capture_output=True, text=True, check=True)
    return next(line for line in (said.stdout + said.stderr).splitlines() if "spill" in line)


def main() -> None:
    for capability in (80, 90):
        for dtype, classes, flags in (
            ("bf16", 1000, ALL), ("fp32", 8192, ALL), ("bf16", 32_000, ALL), ("fp16", 141, {**ALL, "SAME": True}),
            ("fp32", 1000, ALONE), ("bf16", 1000, SOFT),
        ):  # fmt: skip
            block, warps = shape_of(classes)
            constants = {**flags, "BLOCK": block, "ONE": block >= classes}
            print(dtype, capability, classes, compiled(rows_kernel, dtype, capability, constants, warps), flush=True)
        print("scale", capability, compiled(scale_kernel, "bf16", capability, {"BLOCK": 4096}, 8), flush=True)


if __name__ == "__main__":
    main()
