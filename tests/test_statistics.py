"""ClassStatistics, and the tightness and separation made from them."""

import itertools
import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hf_lskd.analysis as analysis
from hf_lskd.analysis import ClassStatistics, SimilarSets, class_geometry, separation, tightness
from hf_lskd.errors import InputError
from tests.reference import slow_class_statistics

# Relative. Sums of a few hundred float64 numbers in another order differ by some 1e-15; three digits to spare.
ANY_ORDER = 1e-12


def samples(n: int, classes: int, dim: int, seed: int = 0, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=generator, dtype=torch.float64) + offset
    return features, torch.randint(classes, (n,), generator=generator)


def assert_same(a: ClassStatistics, b: ClassStatistics, rtol: float = ANY_ORDER) -> None:
    assert a.count.tolist() == b.count.tolist()
    torch.testing.assert_close(a.mean, b.mean, rtol=rtol, atol=rtol, equal_nan=True)
    torch.testing.assert_close(a.within, b.within, rtol=rtol, atol=rtol, equal_nan=True)


def assert_equals_loops(statistics: ClassStatistics, features: Tensor, labels: Tensor, rtol: float = 1e-12) -> None:
    count, mean, within = slow_class_statistics(
        features.double().tolist(), labels.tolist(), num_classes=statistics.num_classes
    )
    assert statistics.count.tolist() == count
    for c in range(statistics.num_classes):
        if count[c]:
            assert statistics.mean[c].tolist() == pytest.approx(mean[c], rel=rtol, abs=rtol)
            assert float(statistics.within[c]) == pytest.approx(within[c], rel=rtol, abs=1e-30)


def test_two_samples_by_hand() -> None:
    statistics = ClassStatistics(3, 2).update(
        torch.tensor([[0.0, 0.0], [6.0, 8.0], [1.0, 1.0]]), torch.tensor([2, 2, 0])
    )
    assert statistics.count.tolist() == [1, 0, 2]
    assert statistics.mean[2].tolist() == [3.0, 4.0]
    assert float(statistics.within[2]) == 25.0  # both lie 5 from (3, 4)
    assert float(statistics.within[0]) == 0.0


def test_equals_the_slow_loops_over_ragged_batches() -> None:
    features, labels = samples(203, 7, 5)
    statistics = ClassStatistics(7, 5)
    for some, their_labels in zip(features.split([1, 100, 64, 38]), labels.split([1, 100, 64, 38])):
        statistics.update(some, their_labels)
    assert_equals_loops(statistics, features, labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32])
def test_accumulates_in_float64_whatever_comes_in(dtype: torch.dtype) -> None:
    features, labels = samples(300, 3, 4, offset=100.0)
    features = features.to(dtype)
    statistics = ClassStatistics(3, 4).update(features, labels)
    assert statistics.mean.dtype == statistics.within.dtype == torch.float64
    assert_equals_loops(statistics, features, labels)


def test_a_large_common_offset_does_not_cancel() -> None:
    features, labels = samples(200, 4, 3, offset=1e7)  # within about 3, sums of squares about 3e14
    statistics = ClassStatistics(4, 3)
    for some, their_labels in zip(features.split(17), labels.split(17)):
        statistics.update(some, their_labels)
    assert_equals_loops(statistics, features, labels, rtol=1e-9)


def test_takes_numpy_arrays_also_read_only_ones() -> None:
    features, labels = samples(20, 3, 4)
    frozen = features.numpy().copy()
    frozen.flags.writeable = False
    assert_same(ClassStatistics(3, 4).update(frozen, labels.numpy()), ClassStatistics(3, 4).update(features, labels))


def test_takes_features_that_require_a_gradient() -> None:
    features, labels = samples(20, 3, 4)
    statistics = ClassStatistics(3, 4).update(features.requires_grad_(), labels)
    assert not statistics.mean.requires_grad


def test_merging_gives_the_same_in_any_order() -> None:
    features, labels = samples(120, 5, 6)
    cuts = [7, 50, 1, 62]
    parts = [ClassStatistics(5, 6).update(f, y) for f, y in zip(features.split(cuts), labels.split(cuts))]
    whole = ClassStatistics(5, 6).update(features, labels)
    for order in itertools.permutations(parts):
        merged = ClassStatistics(5, 6)
        for part in order:
            merged.merge(part)
        assert_same(merged, whole)


def test_merging_pairwise_equals_merging_in_a_row() -> None:
    features, labels = samples(90, 4, 3)
    a, b, c = (ClassStatistics(4, 3).update(f, y) for f, y in zip(features.split(30), labels.split(30)))
    assert_same(ClassStatistics(4, 3).merge(a).merge(ClassStatistics(4, 3).merge(b).merge(c)), a.merge(b).merge(c))


def test_merging_with_an_empty_one_changes_no_bit() -> None:
    full = ClassStatistics(4, 3).update(*samples(30, 3, 3))
    into_full = ClassStatistics(4, 3).update(*samples(30, 3, 3)).merge(ClassStatistics(4, 3))
    into_empty = ClassStatistics(4, 3).merge(full)
    for merged in (into_full, into_empty):
        for ours, theirs in zip(merged.to_tensors().values(), full.to_tensors().values()):
            assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))


def test_merging_leaves_the_other_as_it_is() -> None:
    other = ClassStatistics(3, 2).update(*samples(10, 3, 2, seed=1))
    before = {name: value.clone() for name, value in other.to_tensors().items()}
    ClassStatistics(3, 2).update(*samples(10, 3, 2, seed=2)).merge(other).update(*samples(10, 3, 2, seed=3))
    assert all(torch.equal(before[name], value) for name, value in other.to_tensors().items())


def test_a_batch_without_samples_changes_nothing() -> None:
    statistics = ClassStatistics(3, 2).update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    assert statistics.count.tolist() == [0, 0, 0]


def test_a_class_without_samples_has_a_nan_mean_and_spread() -> None:
    statistics = ClassStatistics(3, 2).update(torch.ones(2, 2), torch.tensor([0, 2]))
    assert statistics.mean.isnan().all(dim=1).tolist() == [False, True, False]
    assert statistics.within.isnan().tolist() == [False, True, False]


def test_relabelling_the_classes_permutes_the_result() -> None:
    features, labels = samples(60, 5, 3)
    new_name = torch.tensor([3, 0, 4, 1, 2])
    before, after = (
        ClassStatistics(5, 3).update(features, labels),
        ClassStatistics(5, 3).update(features, new_name[labels]),
    )
    assert torch.equal(after.count[new_name], before.count)
    assert torch.equal(after.mean[new_name], before.mean)
    assert torch.equal(after.within[new_name], before.within)


def test_what_is_read_is_a_copy() -> None:
    statistics = ClassStatistics(2, 2).update(*samples(10, 2, 2))
    before = statistics.mean.clone()
    for value in (statistics.mean, statistics.count, statistics.within):
        value.zero_()
    assert torch.equal(statistics.mean, before)
    assert statistics.count.sum() == 10


@pytest.mark.parametrize(
    ("features", "labels", "received", "allowed"),
    [
        (torch.ones(2, 3), torch.tensor([0, 4]), "out of range: 4", "0 to 3"),
        (torch.ones(2, 3), torch.tensor([0, -100]), "out of range: -100", "0 to 3"),
        (torch.ones(2, 3), torch.tensor([0]), r"labels of shape \[1\]", r"\[2\]"),
        (torch.ones(2, 3), torch.tensor([0.0, 1.0]), "torch.float32", "integers"),
        (torch.ones(2, 4), torch.tensor([0, 1]), r"features of shape \[2, 4\]", r"\[N, 3\]"),
        (torch.ones(2, 3, 1), torch.tensor([0, 1]), r"features of shape \[2, 3, 1\]", r"\[N, 3\]"),
        (torch.ones(3), torch.tensor([0]), r"features of shape \[3\]", r"\[N, 3\]"),
        (torch.tensor([[1.0, math.nan, 1.0]]), torch.tensor([0]), "NaN", "finite"),
        (torch.tensor([[1.0, math.inf, 1.0]]), torch.tensor([0]), "infinite", "finite"),
    ],
)
def test_bad_batches_are_refused_and_lose_nothing(
    features: Tensor, labels: Tensor, received: str, allowed: str
) -> None:
    statistics = ClassStatistics(4, 3).update(*samples(10, 4, 3))
    before = statistics.to_tensors()
    with pytest.raises(InputError, match=f"{received}.*Allowed: .*{allowed}"):
        statistics.update(features, labels)
    assert all(torch.equal(before[name], value) for name, value in statistics.to_tensors().items())


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (-1, 3), (2.5, 3), ("3", 3)])
def test_sizes_must_be_positive_integers(shape: tuple) -> None:
    with pytest.raises(InputError, match="positive integer"):
        ClassStatistics(*shape)


def test_statistics_of_other_sizes_are_not_merged() -> None:
    with pytest.raises(InputError, match=r"5 classes x 3 dimensions.*4 classes x 3 dimensions"):
        ClassStatistics(4, 3).merge(ClassStatistics(5, 3))
    with pytest.raises(InputError, match=r"4 classes x 2 dimensions.*4 classes x 3 dimensions"):
        ClassStatistics(4, 3).merge(ClassStatistics(4, 2))
    with pytest.raises(InputError, match=r"dict.*ClassStatistics"):
        ClassStatistics(4, 3).merge({})  # type: ignore[arg-type]


def test_safetensors_round_trip_restores_every_bit(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    train = ClassStatistics(5, 3).update(*samples(77, 4, 3))  # class 4 stays empty
    validation = ClassStatistics(5, 3).update(*samples(20, 5, 3, seed=1))
    save_file(train.to_tensors("train.") | validation.to_tensors("validation."), tmp_path / "s.safetensors")
    loaded = load_file(tmp_path / "s.safetensors")
    for prefix, statistics in (("train.", train), ("validation.", validation)):
        again = ClassStatistics.from_tensors(loaded, prefix).to_tensors()
        for name, value in statistics.to_tensors().items():
            assert torch.equal(value.nan_to_num(-1), again[name].nan_to_num(-1)), name
    more = samples(10, 5, 3, seed=2)
    assert_same(ClassStatistics.from_tensors(loaded, "train.").update(*more), train.update(*more), rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"within": None}, "without within"),
        ({"mean": torch.zeros(3, 2)}, r"count \[2\], mean \[3, 2\]"),
        ({"mean": torch.full((2, 2), math.nan)}, "NaN"),
        ({"count": torch.tensor([-1, 2])}, "negative"),
    ],
)
def test_damaged_tensors_are_refused(change: dict, message: str) -> None:
    tensors = {
        k: v
        for k, v in (ClassStatistics(2, 2).update(*samples(9, 2, 2)).to_tensors() | change).items()
        if v is not None
    }
    with pytest.raises(InputError, match=message):
        ClassStatistics.from_tensors(tensors)


def test_sums_add_up_and_lead_back() -> None:
    a, b = ClassStatistics(4, 3).update(*samples(40, 3, 3)), ClassStatistics(4, 3).update(*samples(9, 4, 3, seed=1))
    added = [x + y for x, y in zip(a.sums, b.sums)]
    assert all(value.dtype == torch.float64 for value in added)
    assert_same(ClassStatistics.from_sums(*added), a.merge(b), rtol=1e-10)


def test_sums_are_what_their_name_says() -> None:
    statistics = ClassStatistics(2, 2).update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 1]))
    count, total, squares = statistics.sums
    assert (count.tolist(), total.tolist(), squares.tolist()) == ([0, 2], [[0, 0], [4, 6]], [0, 30])


def test_sums_of_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"count \[3\]"):
        ClassStatistics.from_sums(torch.ones(3), torch.ones(2, 2), torch.ones(2))


class Collective:
    """Sums a tensor over threads, as a process group does over processes."""

    def __init__(self, size: int) -> None:
        self.parts: dict[int, Tensor] = {}
        self.barrier = threading.Barrier(size, timeout=20)

    def sum(self, rank: int, tensor: Tensor) -> Tensor:
        self.parts[rank] = tensor.clone()
        self.barrier.wait()
        total = torch.stack([self.parts[r] for r in sorted(self.parts)]).sum(dim=0)
        self.barrier.wait()
        return total


def all_reduced(parts: list[ClassStatistics]) -> list[ClassStatistics]:
    collective = Collective(len(parts))
    results: dict[int, ClassStatistics] = {}

    def work(rank: int) -> None:
        results[rank] = parts[rank].all_reduced(lambda tensor: collective.sum(rank, tensor))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(len(parts))]


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_all_processes_together_equal_one_process(offset: float) -> None:
    features, labels = samples(101, 6, 4, offset=offset)
    labels[labels == 5] = 4  # no process has class 5
    labels[60:][labels[60:] == 0] = 1  # only the first has class 0
    parts = [ClassStatistics(6, 4).update(f, y) for f, y in zip(features.split([60, 0, 41]), labels.split([60, 0, 41]))]
    before = parts[0].to_tensors()
    for together in all_reduced(parts):
        assert_equals_loops(together, features, labels, rtol=1e-12 if offset == 0 else 1e-9)
        assert together.count[5] == 0
    assert all(torch.equal(before[k].nan_to_num(-1), v.nan_to_num(-1)) for k, v in parts[0].to_tensors().items())


def test_one_process_alone_changes_no_bit() -> None:
    alone = ClassStatistics(5, 3).update(*samples(40, 4, 3))
    (together,) = all_reduced([alone])
    assert_same(together, alone, rtol=0)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and all(tensor is not a for a in tree_leaves(args)):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def test_imagenet_size_stays_under_50_mb_of_tensors() -> None:
    features, labels = samples(256, 1000, 2048)
    features = features.float()
    huge = features[:1].expand(20_000, -1)  # a whole split in one call, without the memory for it
    huge_labels = torch.arange(20_000) % 1000
    with LiveBytes() as memory:
        statistics = ClassStatistics(1000, 2048).update(features, labels).update(huge, huge_labels)
    state = 1000 * 2048 * 8
    assert state < memory.peak < 50e6
    assert int(statistics.count.sum()) == 20_256
    with LiveBytes() as memory:
        statistics.merge(statistics)
    assert memory.peak < 50e6 - 2 * state  # beside two of them


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux shows it")
def test_imagenet_size_stays_under_50_mb_of_process_memory() -> None:
    program = """
import torch
from hf_lskd.analysis.statistics import ClassStatistics
torch.set_num_threads(1)
def kb(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
x, y = torch.randn(256, 2048), torch.randint(1000, (256,))
ClassStatistics(2, 2048).update(x[:4], y[:4] % 2)  # loads what torch loads on first use
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = kb("VmRSS")
statistics = ClassStatistics(1000, 2048)
for _ in range(12):
    statistics.update(x, y)
print((kb("VmHWM") - before) * 1024)
"""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    grown = int(done.stdout)
    assert 8e6 < grown < 50e6  # below 8 MB nothing would have been measured: the centroids alone take 16


def test_tightness_by_hand() -> None:
    # Two classes at distance 10, their samples at ±3 and ±4 from the centroids: √((9 + 16)/2)/10
    features = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 6.0], [0.0, 14.0]])
    statistics = ClassStatistics(3, 2).update(features, torch.tensor([0, 0, 2, 2]))
    assert tightness(statistics) == pytest.approx(math.sqrt(12.5) / 10, rel=1e-12)


def test_tightness_and_separation_do_not_depend_on_scale() -> None:
    features, labels = samples(80, 5, 4)
    sets = {0: SimilarSets((1,), (2, 3)), 4: SimilarSets((2, 0), (1,))}
    one = class_geometry(ClassStatistics(5, 4).update(features, labels), sets)
    other = class_geometry(ClassStatistics(5, 4).update(7 * features - 3, labels), sets)
    assert one == pytest.approx(other, rel=1e-12)
    assert set(one) == {"tightness", "separation"}
    assert set(class_geometry(ClassStatistics(5, 4).update(features, labels))) == {"tightness"}


def test_separation_by_hand() -> None:
    # From class 0: S1 at 1 and 3, S2 at 4 and 8: (4/2) / (16/4) = 1/2. From class 1 at (1, 0): S1 = class 0 at 1,
    # S2 = class 3 at 5: 1/3.
    centroids = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.8, 2.4], [-4.0, 0.0], [4.8, -6.4]], dtype=torch.float64)
    sets = {0: SimilarSets((1, 2), (3, 4)), 1: SimilarSets((0,), (3,))}
    assert separation(centroids, sets) == pytest.approx((1 / 2 + 1 / 3) / 2, rel=1e-12)


def test_geometry_of_too_little_is_refused() -> None:
    one_class = ClassStatistics(3, 2).update(torch.ones(2, 2), torch.tensor([1, 1]))
    with pytest.raises(InputError, match="1 classes with samples"):
        tightness(one_class)
    with pytest.raises(InputError, match="coincide"):
        tightness(ClassStatistics(2, 2).update(torch.ones(2, 2), torch.tensor([0, 1])))
    with pytest.raises(InputError, match=r"class 2 \(cat\) has no samples"):
        separation(one_class.mean, {1: SimilarSets((2,), (0,))}, class_names=["ant", "bee", "cat"])
    with pytest.raises(InputError, match="no target"):
        separation(np.eye(3), {})


def test_every_public_name_of_the_room_is_there() -> None:
    assert all(hasattr(analysis, name) for name in analysis.__all__)
    assert len(set(analysis.__all__)) == len(analysis.__all__)
