"""How much of everything `bench.gpu` measures, on a GPU and where only the script itself is tried."""

from dataclasses import dataclass
from typing import Any


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
