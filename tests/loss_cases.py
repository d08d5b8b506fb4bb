"""What the blocked pass and the kernel are both held to."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_lskd.losses import LossTerms


class Made(TorchDispatchMode):
    """How many tensors of at least `size` numbers come to be."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.storages = size, set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for part in found if isinstance(found, list | tuple) else (found,):
            if isinstance(part, torch.Tensor) and part.untyped_storage().nbytes() >= self.size * part.element_size():
                self.storages.add(part.untyped_storage()._cdata)
        return found


def far_apart(offset: float, n: int, c: int, scale: float = 30.0) -> tuple[torch.Tensor, ...]:
    """(student, teacher, labels) in float32 whose logits lie about +offset and −offset/2, off the teacher's grid."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (scale * torch.randn(n, c, generator=generator) for _ in range(2))
    labels = torch.randint(0, c, (n,), generator=generator)
    return (student + offset).requires_grad_(True), teacher - offset / 2, labels


def gradient_of(loss: torch.Tensor, student: torch.Tensor, **more: Any) -> torch.Tensor:
    return torch.autograd.grad(loss, student, retain_graph=True, **more)[0]


def check_each_term_alone_a_factor_and_a_second_backward(
    ours: LossTerms, plain: LossTerms, student: torch.Tensor, **near: float
) -> None:
    """The gradient of whatever is made of the terms, and what was given away is not written to again."""
    first = gradient_of(ours.total, student)
    kept = first.clone()
    for loss in (
        lambda t: t.total,
        lambda t: 3 * t.total,
        lambda t: t.hard,
        lambda t: t.soft,
        lambda t: t.total - 2 * t.soft,
    ):
        torch.testing.assert_close(gradient_of(loss(ours), student), gradient_of(loss(plain), student), **near)
    assert torch.equal(first, kept)
