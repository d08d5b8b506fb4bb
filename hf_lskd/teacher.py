"""What a teacher is: frozen, always in eval mode, outside the student's module tree, and checked against the student."""

import contextlib
import copy
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_lskd import models
from hf_lskd.arguments import LOGITS, PROBABILITIES
from hf_lskd.errors import InputError
from hf_lskd.losses import upcast
from hf_lskd.models.preparation import Statistics
from hf_lskd.teacher_cache import IMAGES, TeacherCache

logger = logging.getLogger(__name__)


class Teacher:
    """One frozen model, or an ensemble of them, that turns a batch prepared for the student into logits `[N, C]`.

    Not a module on purpose: nothing that walks the student's tree (train(), state_dict(), checkpoints, the optimizer, DDP)
    can reach it.
    """

    def __init__(self, members: Sequence["Member"]) -> None:
        self.members = tuple(members)
        self.store: TeacherCache | None = None  # where its logits on the training set are read, if anywhere
        self.reported = False  # how good it is on the data has been said

    def logits(self, inputs: Mapping[str, Any], temperature: float = 1.0, of: str = PROBABILITIES) -> Tensor:
        """The teacher's logits for a batch of model inputs; an ensemble's are `ensemble_logits` of its members'."""
        return ensemble_logits(self.outputs(inputs), temperature, of)

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Each member's logits. Under no_grad, not inference mode: what is returned may be saved for a backward."""
        return self.compute(inputs) if self.store is None else [self.store.logits(inputs)]

    @torch.no_grad()
    def compute(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The same, never from a cache: of data that no cache was made of."""
        return [member.logits(inputs) for member in self.members]

    def compile(self) -> None:
        """Compile each member on its own; the student is accelerate's business."""
        for member in self.members:
            member.forward = torch.compile(member.model)


class Member:
    """A frozen model with the change of normalisation that its input needs.

    `own_dtype`: it computes in the type of its weights, also where the student is under autocast.
    """

    def __init__(self, model: nn.Module, renormalise: tuple[Tensor, Tensor] | None, own_dtype: bool = False) -> None:
        self.model = model
        self.forward: Any = model
        self.renormalise = renormalise
        self.own_dtype = own_dtype
        self._modules = tuple(model.modules())  # walking the tree at each step costs a small model milliseconds
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def stay_in_eval(self) -> None:
        """Undo whoever switched the teacher: it never drops out, nor moves its batch statistics."""
        if any(module.training for module in self._modules):
            self.model.eval()

    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        self.stay_in_eval()
        images = inputs.get(IMAGES)
        if images is None:
            return logits_of(self.forward(**inputs))
        if self.renormalise is not None:
            scale, shift = self.renormalise
            images = images * scale.to(images) + shift.to(images)
        with torch.autocast(images.device.type, enabled=False) if self.own_dtype else contextlib.nullcontext():
            return call_on_images(self.forward, self.model, images.to(self.dtype), inputs)


def ensemble_logits(outputs: Sequence[Tensor], temperature: float, of: str = PROBABILITIES) -> Tensor:
    """One teacher's logits z from those of several, z_i `[…, C]`, so that the losses need not know of ensembles.

    `of` "probabilities": softmax(z/T) is the mean of softmax(z_i/T) (Hinton et al. 2015), so z depends on T. "logits": z is
    the mean of z_i; softmax(z/T) is then the geometric mean of theirs, renormalised. One model's logits are returned as they are.
    """
    if len(outputs) == 1:
        return outputs[0]
    if of == LOGITS:
        return torch.stack([upcast(z) for z in outputs]).mean(0)
    tempered = torch.stack([F.log_softmax(upcast(z) / temperature, dim=-1) for z in outputs])
    return temperature * (torch.logsumexp(tempered, dim=0) - math.log(len(outputs)))


def call_on_images(forward: Any, model: nn.Module, images: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Logits of a transformers model (by keyword, with its other inputs) or of a bare module (by position)."""
    if hasattr(model, "config"):
        return logits_of(forward(**{**inputs, IMAGES: images}))
    return logits_of(forward(images))


def logits_of(outputs: Any) -> Tensor:
    """The logits in a model's output: a tensor, a mapping with `logits`, or a tuple that begins with them."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) or hasattr(outputs, "logits"):
        return outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
    return outputs[0]


def prepare_teacher(
    teacher: nn.Module | str | Sequence[nn.Module | str],
    student: nn.Module,
    *,
    device: torch.device,
    dtype: str | None = None,
    data_statistics: Statistics | None = None,
) -> Teacher:
    """A teacher ready for `student`, from a module, a name or path, or a list of these (an ensemble).

    `dtype` ("float32", "bfloat16", "float16") converts a copy. `data_statistics` is the (mean, std) that the images were
    normalised with; where both it and the teacher's own are known and differ, the teacher's input is re-normalised.
    Raises InputError when the classes differ from the student's, in number or in name, when a teacher shares weights with
    the student, and when a named teacher has weights that no checkpoint filled.
    """
    sources: list[Any] = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    if not sources:
        raise InputError("teacher_model is an empty list", "a module, a name or path, or a list of these")
    return Teacher([prepare_member(source, student, device, dtype, data_statistics) for source in sources])


def prepare_member(
    source: nn.Module | str,
    student: nn.Module,
    device: torch.device,
    dtype: str | None,
    data_statistics: Statistics | None,
) -> Member:
    model: nn.Module = source if isinstance(source, nn.Module) else models.load_trained(str(source))
    check_separate(model, student)
    check_classes(model, student)
    own = models.normalization_of(model)
    if dtype is not None:
        model = (copy.deepcopy(model) if model is source else model).to(getattr(torch, dtype))
    model.requires_grad_(False).eval().to(device)
    change = renormalisation(data_statistics, own)
    return Member(model, None if change is None else (change[0].to(device), change[1].to(device)), dtype is not None)


def renormalisation(data: Statistics | None, own: Statistics | None) -> tuple[Tensor, Tensor] | None:
    """(scale, shift), each `[C, 1, 1]`, that turn images normalised by `data` into images normalised by `own`; None if equal.

    (x·s_d + m_d − m_t)/s_t = x·(s_d/s_t) + (m_d − m_t)/s_t.
    """
    if data is None or own is None:
        unknown = " and ".join(name for name, known in (("the data's", data), ("the teacher's", own)) if known is None)
        logger.info(
            "%s image statistics are unknown: the teacher gets its input as the student does.", unknown.capitalize()
        )
        return None
    (data_mean, data_std), (own_mean, own_std) = (
        (torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)) for mean, std in (data, own)
    )
    if torch.equal(data_mean, own_mean) and torch.equal(data_std, own_std):
        return None
    logger.info("The teacher's images are re-normalised from mean, std %s to its own %s.", data, own)
    scale, shift = data_std / own_std, (data_mean - own_mean) / own_std
    return scale.view(-1, 1, 1), shift.view(-1, 1, 1)


def check_separate(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher that holds a parameter of the student: freezing it would freeze the student."""
    own = {id(p) for p in student.parameters()}
    if any(id(p) in own for p in teacher.parameters()):
        raise InputError(
            "teacher and student share parameters", "two separate models", "Pass copy.deepcopy(model) as the teacher."
        )


def check_classes(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher whose classes differ from the student's in number or, where both are named, in name or order."""
    theirs, ours = models.num_classes(teacher), models.num_classes(student)
    if theirs is not None and ours is not None and theirs != ours:
        raise InputError(f"a teacher of {theirs} classes for a student of {ours}", "equal classes in equal order")
    their_names, our_names = class_names(teacher), class_names(student)
    if their_names and our_names and their_names != our_names:
        index = next(i for i, pair in enumerate(zip(their_names, our_names)) if pair[0] != pair[1])
        raise InputError(
            f"class {index} is {their_names[index]!r} for the teacher and {our_names[index]!r} for the student",
            "equal id2label on both sides",
            "Same classes under other names? Give both models the same id2label.",
        )


def class_names(model: nn.Module) -> list[str] | None:
    """The model's class names in order; None where they are only transformers' placeholders LABEL_0, LABEL_1, …"""
    id2label = getattr(getattr(model, "config", None), "id2label", None)
    if not id2label:
        return None
    names = [str(id2label[key]) for key in sorted(id2label, key=int)]
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names
