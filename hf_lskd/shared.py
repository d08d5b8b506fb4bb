"""What trainers that take the same steps together need only once: each batch, and what their teacher says of it."""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_lskd.teacher import Teacher

Position = tuple[int, int]  # epoch and batch, both counted from where a reader began


class Generators(NamedTuple):
    """Where the global random generators stand."""

    python: Any
    numpy: Any
    cpu: Tensor
    gpus: list[Tensor]

    @classmethod
    def now(cls) -> "Generators":
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state(), gpus)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)

    def same(self, other: "Generators") -> bool:
        words = [[g.numpy["state"]["pos"], *g.numpy["state"]["key"].tolist()] for g in (self, other)]
        gpus = all(torch.equal(one, its) for one, its in zip(self.gpus, other.gpus))
        return self.python == other.python and words[0] == words[1] and torch.equal(self.cpu, other.cpu) and gpus


class OutOfStepError(RuntimeError):
    """A trainer asked for a batch that the others are not at."""


class Fetched(NamedTuple):
    """A batch, and where the generators stood before and after it was read, where reading it drew from them."""

    batch: Any  # None: the epoch has ended
    drawn: tuple[Generators, Generators] | None


class SharedBatches:
    """The batches of trainers that read the same data in the same order: read once, by the loader of whoever comes first.

    A batch is kept until every reader has had it. What reading it draws from the global generators (a stock sampler's
    order) is drawn by each reader, so that each stands where it would stand alone. Each batch is prepared once, as the
    first reader's trainer does it; nobody may write into its tensors.
    """

    def __init__(self) -> None:
        self.readers: list[Reader] = []
        self.epoch = -1
        self.next = 0  # batch of the stream
        self.stream: Iterator[Any] = iter(())
        self.kept: dict[Position, Fetched] = {}
        self.broken: Exception | None = None  # what reading ended with: each reader would meet it

    def reader(self, prepare: Callable[[Any], Any]) -> "Reader":
        """A reader for one more trainer, to be set as its `batch_source`; `prepare` is the trainer's `_prepare_inputs`."""
        self.readers.append(Reader(self, prepare))
        return self.readers[-1]

    def leave(self, reader: "Reader") -> None:
        """Wait no longer for a reader that has ended; what it opened goes on for the others."""
        if reader in self.readers:
            self.readers.remove(reader)
        self._forget()

    def take(self, reader: "Reader") -> Fetched:
        at = (reader.epoch, reader.batch)
        if at not in self.kept:
            self.kept[at] = self._fetch(at, reader)
        return self.kept[at]

    def _fetch(self, at: Position, reader: "Reader") -> Fetched:
        epoch, batch = at
        if epoch > self.epoch:
            self.epoch, self.next, self.stream = epoch, 0, reader.own
        if at != (self.epoch, self.next):
            raise OutOfStepError(f"batch {batch} of epoch {epoch} where the others are at {self.next} of {self.epoch}")
        if self.broken is not None:
            raise self.broken
        before = Generators.now()
        try:
            found = next(self.stream, None)
        except Exception as error:
            self.broken = error
            raise
        self.next += 1
        after = Generators.now()
        return Fetched(
            None if found is None else reader.prepare(found), None if before.same(after) else (before, after)
        )

    def _forget(self) -> None:
        passed = min(((reader.epoch, reader.batch) for reader in self.readers), default=(self.epoch + 1, 0))
        for at in [at for at in self.kept if at < passed]:
            del self.kept[at]


class Reader:
    """One trainer's place in shared batches. As a `batch_source` it takes the trainer's own iterator over an epoch, which it
    only reads from when it is the first there, and is the iterator that the trainer reads in its place."""

    def __init__(self, shared: SharedBatches, prepare: Callable[[Any], Any]) -> None:
        self.shared, self.prepare = shared, prepare
        self.own: Any = None
        self.epoch, self.batch = -1, 0

    def __call__(self, epoch_iterator: Iterator[Any]) -> Iterator[Any]:
        if epoch_iterator is not self.own:
            self.own, self.epoch, self.batch = epoch_iterator, self.epoch + 1, 0
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        first = (self.epoch, self.batch) not in self.shared.kept
        fetched = self.shared.take(self)
        if fetched.drawn is not None and not first:
            before, after = fetched.drawn
            if not Generators.now().same(before):
                raise OutOfStepError("the order of the data comes from a random generator that stands elsewhere")
            after.restore()
        self.batch += 1
        self.shared._forget()
        if fetched.batch is None:
            raise StopIteration
        return dict(fetched.batch) if isinstance(fetched.batch, Mapping) else fetched.batch


class SharedTeacher(Teacher):
    """A teacher that several trainers ask about the very same tensors: it computes once what it has just been asked.

    `size` batches are remembered. Same means the same tensor objects, so no other batch's logits can be given. Raises
    RuntimeError when somebody has written into remembered logits.
    """

    def __init__(self, teacher: Teacher, size: int = 1) -> None:
        super().__init__(teacher.members)
        self.size = size
        self._known: OrderedDict[tuple[Any, ...], tuple[Any, list[Tensor], list[int]]] = OrderedDict()

    def outputs(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
        device = tensors[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (dtype, *((name, id(value)) for name, value in sorted(inputs.items())))
        if key not in self._known:
            found = super().outputs(inputs)
            while len(self._known) >= self.size:
                self._known.popitem(last=False)
            # the inputs are kept too: while they live, nothing else has their ids
            self._known[key] = (dict(inputs), found, [logits._version for logits in found])
        _, logits, versions = self._known[key]
        if [one._version for one in logits] != versions:
            raise RuntimeError("a trainer has written into the teacher's logits, which others share")
        return logits

    def forget(self) -> None:
        """Let go of what is remembered."""
        self._known.clear()
