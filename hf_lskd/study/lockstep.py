"""The students of one teacher trained together, a step of each in turn: the data and the teacher are run once for all.

Each student is a trainer of its own in a strand of its own (`strands`), with its own optimizer, schedule, clipping, batch
statistics and random generators; what they share is read only (`hf_lskd.shared`). So each becomes, to the last bit on a CPU,
what it becomes alone, whatever happens to the others.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_lskd.clock import SaveByClock
from hf_lskd.host_memory import give_back_freed_memory
from hf_lskd.recipe import signature
from hf_lskd.record import Cell
from hf_lskd.sharding import launched_with
from hf_lskd.shared import OutOfStepError, Reader, SharedBatches, SharedTeacher
from hf_lskd.study.bench import Bench, world_size
from hf_lskd.study.cell import CHECKPOINTS, partial_folder, whole_checkpoints
from hf_lskd.study.grid import Column
from hf_lskd.study.strands import Strand
from hf_lskd.teacher import Teacher

COPIES = 6  # of a student's weights that it may keep: themselves, gradients, two moments, a moving average and what it replaces
ORDER = ("data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "max_tokens")  # training arguments
SHARE = 0.5  # of the free memory that the waiting students may take


class Together:
    """What students share while they are trained together."""

    def __init__(self, students: int) -> None:
        self.students = students
        self.batches = SharedBatches()
        self.teacher: SharedTeacher | None = None
        self.order: list[Any] | None = None  # of the first student: its values of `ORDER`
        self.decided: dict[int, tuple[bool, int]] = {}  # when checkpoints are due by the clock, see `SaveByClock`


class Seat:
    """One student's place among those that are trained together. What it does not say for itself is called in its strand."""

    strand: Strand

    def __init__(self, together: Together, resume: int | None) -> None:
        self.together = together
        self.resume = resume  # the step of the checkpoint that all of them have; None: they begin
        self.training = True
        self.trainer: Any = None
        self.reader: Reader | None = None

    @property
    def students(self) -> int:
        return self.together.students

    @property
    def teacher(self) -> Teacher | None:
        """The students' teacher, when one before this one has read it."""
        return self.together.teacher

    def clock(self) -> float:
        """Seconds that this student has been at work."""
        return self.strand.seconds

    def take(self, trainer: Any) -> None:
        """Let a trainer take part: it shares batches and teacher, and gives way to the others before each step.

        Raises OutOfStepError for one that reads its data in another order or in other batches than the first.
        """
        order = [getattr(trainer.args, key, None) for key in ORDER]
        if self.together.order not in (None, order):
            raise OutOfStepError(f"{ORDER} of {order} where the others have {self.together.order}")
        self.together.order = order
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, SaveByClock):
                callback.decided = self.together.decided
        if trainer.teacher is not None and self.together.teacher is None:
            self.together.teacher = SharedTeacher(trainer.teacher, trainer.args.gradient_accumulation_steps)
        trainer.teacher = trainer.teacher and self.together.teacher
        self.reader, self.trainer = self.together.batches.reader(trainer._prepare_inputs), trainer
        trainer.batch_source = self._next
        self.strand.pause()  # none begins before all are there

    def _next(self, epoch_iterator: Any) -> Any:
        assert self.reader is not None
        self.strand.pause()
        return self.reader(epoch_iterator)

    def leave(self) -> None:
        """Training has ended: wait until it has for the others too."""
        self._forgo()
        self.strand.pause()

    def advance(self) -> None:
        """From outside: let the student go on to where the next one's turn is. Raises what interrupts the whole run."""
        self.strand.advance()
        if self.strand.ended:
            self._forgo()
        if self.strand.error is not None:
            raise self.strand.error

    def _forgo(self) -> None:
        self.training = False
        if self.reader is not None:
            self.together.batches.leave(self.reader)
            self.trainer.batch_source = self.trainer = self.reader = None
        if self.together.teacher is not None and not self.together.batches.readers:
            self.together.teacher.forget()


def run_together(
    students: Sequence[Cell], folder: Path, make: Callable[[Cell, Seat], dict[str, Any]]
) -> dict[Cell, dict[str, Any]]:
    """What `make` returns for each student, where it trains the cell from the seat that it is given; cells are in `folder`.

    Students that an earlier run left at different steps go on from the newest checkpoint that all of them have; where there
    is none, those at the same step go together. An interruption stops all at their next step.
    """
    records: dict[Cell, dict[str, Any]] = {}
    for step, group in by_checkpoint(students, folder).items():
        records.update(run_group(group, step, make))
    return records


def run_group(
    students: Sequence[Cell], step: int | None, make: Callable[[Cell, Seat], dict[str, Any]]
) -> dict[Cell, dict[str, Any]]:
    """Students that begin together, or go on from the checkpoint of the same step: a step of each in turn, then all else of each."""
    together = Together(len(students))
    seats = {cell: Seat(together, step) for cell in students}
    for cell, seat in seats.items():
        seat.strand = Strand(partial(make, cell, seat))
    try:
        while training := [seat for seat in seats.values() if seat.training]:
            for seat in training:
                seat.advance()
        for seat in seats.values():
            while not seat.strand.ended:
                seat.advance()
    finally:
        for seat in seats.values():
            seat.strand.stop()
    return {cell: seat.strand.result for cell, seat in seats.items()}


def by_checkpoint(students: Sequence[Cell], folder: Path) -> dict[int | None, list[Cell]]:
    """Students by the step that they go on from (None: the beginning)."""
    steps = {cell: set(whole_checkpoints(partial_folder(folder / cell.name) / CHECKPOINTS)) for cell in students}
    common = set.intersection(*steps.values()) if steps else set()
    if common:
        return {max(common): list(students)}
    groups: dict[int | None, list[Cell]] = {}
    for cell in students:
        groups.setdefault(max(steps[cell], default=None), []).append(cell)
    return groups


# ---- Which, and how many at once


def put_together(bench: Bench, found: Iterable[Column]) -> list[Column]:
    """Columns as they are made: those that share their teachers and every batch are one, at the place of the first.

    They may differ in the seed, where the recipe has one order of the data for all and one teacher, and in all of the grid
    and of a student that changes neither batches nor what the teacher says.
    """
    columns = list(found)
    if not possible(bench):
        return columns
    merged: dict[Any, Column] = {}
    for column in columns:
        key = (column.teachers, signature(bench.task.batches_of(column.students[0])))
        before = merged[key].students if key in merged else ()
        merged[key] = Column(column.teachers, (*before, *column.students))
    return list(merged.values())


def possible(bench: Bench) -> bool:
    """Whether students of this study may be trained together at all."""
    return bench.lockstep and bench.make is None and world_size() == 1 and not sharded(bench)


def how_many(bench: Bench, students: Sequence[Cell]) -> int:
    """How many of these students fit into memory together, by what each keeps between two of its steps; 1: train each alone."""
    if not possible(bench) or len(students) < 2:
        return 1
    try:
        each = COPIES * max(student_bytes(bench, student) for student in students)
    except Exception:  # which each of them will meet, and record
        return 1
    return max(1, min(len(students), 1 + int(SHARE * free_memory() / max(each, 1))))


def sharded(bench: Bench) -> bool:
    """Whether the training arguments hand the model over to somebody whose state is the process's."""
    return launched_with() is not None or any(
        bench.recipe.training_of(spec).get(key) for spec in bench.recipe.students for key in ("fsdp", "deepspeed")
    )


def student_bytes(bench: Bench, student: Cell) -> int:
    """Bytes of a student's weights; a model is built for it once, not each time that somebody looks what is free."""
    known: dict[str, int] = bench.task.__dict__.setdefault("_student_bytes", {})
    if student.student not in known:
        known[student.student] = weight_bytes(bench.task.build(student))
    return known[student.student]


def weight_bytes(model: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def free_memory() -> int:
    """Bytes that are free where the models are."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    import psutil

    give_back_freed_memory()
    return int(psutil.virtual_memory().available)
