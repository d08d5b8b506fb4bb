"""S1 and S2 from groups, from a teacher's embedding, centroids and mistakes, and from a file; and their signature."""

import random
from pathlib import Path

import pytest
import torch

from hf_lskd.analysis import (
    ChosenSets,
    SimilarSets,
    sets_from_centroids,
    sets_from_confusion,
    sets_from_groups,
    sets_signature,
)
from hf_lskd.analysis.semantics import sets_from_embeddings, sets_from_file
from hf_lskd.errors import InputError

GROUPS = ["a", "b"] * 6 + ["c"] * 3  # a: 0 2 4 6 8 10, b: 1 3 5 7 9 11, c: 12 13 14


def test_similar_are_the_others_of_the_group_and_dissimilar_are_not() -> None:
    sets = sets_from_groups(GROUPS, dissimilar=5)
    assert list(sets) == list(range(12))  # c is too small a group to have targets
    assert sets[4].similar == (0, 2, 6, 8, 10)
    for target, one in sets.items():
        assert all(GROUPS[k] == GROUPS[target] and k != target for k in one.similar)
        assert all(GROUPS[k] != GROUPS[target] for k in one.dissimilar)
        assert len(one.dissimilar) == len(set(one.dissimilar)) == 5
        assert list(one.dissimilar) == sorted(one.dissimilar)


def test_the_draw_depends_on_seed_and_target_alone() -> None:
    every = sets_from_groups(GROUPS, dissimilar=5)
    assert sets_from_groups(GROUPS, dissimilar=5) == every
    assert sets_from_groups(GROUPS, dissimilar=5, targets=[7, 2]) == {2: every[2], 7: every[7]}
    assert sets_from_groups(GROUPS, dissimilar=5, seed=1) != every
    assert len({every[target].dissimilar for target in (0, 2, 4, 6, 8, 10)}) > 1


def test_the_draw_is_the_same_on_every_machine_and_version() -> None:
    sets = sets_from_groups([f"g{i // 5}" for i in range(50)], dissimilar=4, seed=3, targets=[11])
    # RandomState([3, 11]).permutation of the 45 others; numpy keeps this stream for good
    assert sets == {11: SimilarSets((10, 12, 13, 14), (16, 23, 37, 48))}


def test_every_dissimilar_class_is_drawn_about_equally_often() -> None:
    groups = [f"g{i // 5}" for i in range(25)]
    times = [0] * 25
    for seed in range(300):
        for k in sets_from_groups(groups, dissimilar=4, seed=seed, targets=[0])[0].dissimilar:
            times[k] += 1
    assert times[:5] == [0] * 5
    # 300 draws of 4 out of 20: 60 each, standard deviation √(300 · .2 · .8) = 6.9
    assert all(60 - 5 * 6.9 < n < 60 + 5 * 6.9 for n in times[5:])


def test_fewer_dissimilar_classes_than_asked_for_are_all_taken() -> None:
    assert sets_from_groups(GROUPS, dissimilar=20)[0].dissimilar == (1, 3, 5, 7, 9, 11, 12, 13, 14)


def test_min_similar_decides_who_is_a_target() -> None:
    assert list(sets_from_groups(GROUPS, min_similar=2)) == list(range(15))
    assert list(sets_from_groups(GROUPS, min_similar=5)) == list(range(12))
    with pytest.raises(InputError, match=r"no class with 6 similar ones: the largest of 3 groups has 6.*Lower"):
        sets_from_groups(GROUPS, min_similar=6)


def test_a_named_target_without_similar_classes_is_refused() -> None:
    with pytest.raises(InputError, match=r"class 13 \(group 'c'\) has 2 similar classes.*at least 4"):
        sets_from_groups(GROUPS, targets=[0, 13])
    with pytest.raises(InputError, match=r"class 2 \(group 'z'\) has 0 similar"):
        sets_from_groups(["y", "y", "z"], min_similar=1, targets=[2])


@pytest.mark.parametrize("target", [-1, 15])
def test_a_target_that_does_not_exist_is_refused(target: int) -> None:
    with pytest.raises(InputError, match=f"target class {target}.*0 to 14"):
        sets_from_groups(GROUPS, targets=[target])


def test_one_single_group_has_nothing_dissimilar() -> None:
    with pytest.raises(InputError, match="all classes in one group"):
        sets_from_groups(["a"] * 9)


@pytest.mark.parametrize("settings", [{"min_similar": 0}, {"dissimilar": 0}])
def test_settings_are_checked(settings: dict) -> None:
    with pytest.raises(InputError, match="at least 1"):
        sets_from_groups(GROUPS, **settings)


def test_the_signature_sees_every_change_of_the_sets_and_nothing_else() -> None:
    sets = sets_from_groups(GROUPS, min_similar=2, dissimilar=3, seed=2)
    signature = sets_signature(sets)
    assert signature.startswith("targets:15|similar:2-5|dissimilar:3|sha256:")
    assert "," not in signature  # it stands in a CSV file
    assert sets_signature(dict(reversed(sets.items()))) == signature
    one, other = sets[0], sets[1]
    for changed in (
        sets | {0: SimilarSets(one.similar[:-1], one.dissimilar)},
        sets | {0: other, 1: one},
        sets_from_groups(GROUPS, min_similar=2, dissimilar=3, seed=3),
        {target: sets[target] for target in range(12)},
    ):
        assert sets_signature(changed) != signature


def test_the_signature_of_sets_of_one_size_has_no_range() -> None:
    assert sets_signature({3: SimilarSets((1, 2), (5,))}).startswith("targets:1|similar:2|dissimilar:1|sha256:")


# ---- From a teacher's output embedding, and from a file


def circle(angles: list[float]) -> torch.Tensor:
    """Points on a circle at these degrees, of different lengths, which must not matter."""
    radians = torch.deg2rad(torch.tensor(angles))
    return torch.stack([radians.cos(), radians.sin()], 1) * torch.linspace(1, 3, len(angles)).unsqueeze(1)


def test_tokens_are_near_and_far_by_the_angle_between_their_rows() -> None:
    weight = circle([0, 10, 180, 20, 170, 90])
    found = sets_from_embeddings(weight, [0, 1, 2, 3, 4], similar=2, dissimilar=2)
    assert found[0] == SimilarSets(similar=(1, 3), dissimilar=(2, 4))
    assert found[2] == SimilarSets(similar=(3, 4), dissimilar=(0, 1))
    assert list(found) == [0, 1, 2, 3, 4]  # 5 is no candidate, neither as a target nor in a set
    assert sets_from_embeddings(weight, [4, 2, 0, 1, 3], similar=2, dissimilar=2, targets=[2]) == {2: found[2]}


def test_too_few_candidates_and_rare_targets_are_refused() -> None:
    weight = circle([0, 10, 180, 20, 170, 90])
    with pytest.raises(InputError, match=r"4 tokens .*at least 5: 2 similar, 2 dissimilar"):
        sets_from_embeddings(weight, [0, 1, 2, 3], similar=2, dissimilar=2)
    with pytest.raises(InputError, match="target token 5 is too rare"):
        sets_from_embeddings(weight, [0, 1, 2, 3, 4], similar=2, dissimilar=2, targets=[5])


def test_a_file_says_which_classes_are_similar(tmp_path: Path) -> None:
    path = tmp_path / "sets.json"
    path.write_text('{"cat": {"similar": ["dog"], "dissimilar": ["car", "bus"]}}')
    names = ["bus", "car", "cat", "dog"]
    assert sets_from_file(path, names) == {2: SimilarSets((3,), (0, 1))}
    for text, message in (
        ('{"cat": {"similar": ["dgo"], "dissimilar": ["car"]}}', "Did you mean 'dog'"),
        ('{"cat": {"similar": [], "dissimilar": ["car"]}}', "neither empty"),
        ('{"cat": {"similar": ["car"], "dissimilar": ["car"]}}', "no class twice"),
        ('{"cat": {"similar": ["dog"]}}', "cannot be read"),
        ("{}", "names no target"),
        ("[", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            sets_from_file(path, names)
    with pytest.raises(InputError, match="cannot be read"):
        sets_from_file(tmp_path / "missing.json", names)


def test_the_signature_names_the_source_of_the_sets() -> None:
    sets = {3: SimilarSets((1, 2), (5,))}
    signature = sets_signature(ChosenSets(sets, "wordnet-3.0"))
    assert signature == f"sets:wordnet-3.0|{sets_signature(sets)}"
    assert signature != sets_signature(ChosenSets(sets, "groups"))


# ---- Centroids


def test_the_nearest_centroids_are_similar_and_the_farthest_dissimilar() -> None:
    means = torch.tensor([[0.0, 0], [1, 0], [0, 2], [30, 40], [3, 4], [50, 0]])
    sets = sets_from_centroids(means, similar=2, dissimilar=2)
    assert list(sets) == list(range(6))
    assert sets[0] == SimilarSets((1, 2), (3, 5))  # distances 1, 2, 50, 5, 50
    assert sets[4] == SimilarSets((1, 2), (3, 5))
    assert sets_from_centroids(means, similar=2, dissimilar=2, targets=[4]) == {4: sets[4]}


def test_of_equally_far_centroids_the_lower_index_is_the_nearer() -> None:
    means = torch.tensor([[0.0], [1], [-1], [1], [-1]])
    assert sets_from_centroids(means, similar=2, dissimilar=1, targets=[0])[0] == SimilarSets((1, 2), (4,))


def test_centroids_agree_with_plain_sorting() -> None:
    means = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    sets = sets_from_centroids(means, similar=4, dissimilar=20)
    for target, one in sets.items():
        apart = [float(sum((a - b) ** 2 for a, b in zip(means[target].tolist(), row))) for row in means.tolist()]
        order = sorted((c for c in range(40) if c != target), key=lambda c: apart[c])
        assert one == SimilarSets(tuple(sorted(order[:4])), tuple(sorted(order[-20:])))


def test_centroids_that_cannot_say_are_refused() -> None:
    with pytest.raises(InputError, match=r"6 classes.*at least 7: 4 similar, 2 dissimilar.*Lower"):
        sets_from_centroids(torch.zeros(6, 2), dissimilar=2)
    with pytest.raises(InputError, match="not finite"):
        sets_from_centroids(torch.tensor([[0.0], [1], [float("nan")]]), similar=1, dissimilar=1)
    with pytest.raises(InputError, match=r"target class 9.*0 to 7"):
        sets_from_centroids(torch.zeros(8, 2), dissimilar=2, targets=[9])


# ---- Confusion

TAKEN = [(0, 1)] * 3 + [(2, 0)] * 2 + [(0, 3)] * 2 + [(3, 0)] + [(0, 0)] * 9 + [(4, 5)]  # (label, prediction)


def test_what_a_teacher_confuses_most_is_similar_and_what_it_never_does_is_not() -> None:
    labels, predictions = (torch.tensor(each) for each in zip(*TAKEN))
    sets = sets_from_confusion(labels, predictions, 7, similar=2, dissimilar=9, targets=[0])
    assert sets == {0: SimilarSets((1, 3), (4, 5, 6))}  # 1 and 3 three times each, 2 twice: both ways count
    assert list(sets_from_confusion(labels, predictions, 7, similar=1)) == [0, 1, 2, 3, 4, 5]
    one = sets_from_confusion(labels, predictions, 7, similar=1, targets=[0])[0]
    assert one.similar == (1,)  # as often as 3, and before it
    assert one.dissimilar == (4, 5, 6)  # not 2 and 3, which are confused with it too


def test_confusion_agrees_with_plain_counting() -> None:
    chance = random.Random(1)
    labels = [chance.randrange(12) for _ in range(150)]
    predictions = [c if chance.random() < 0.7 else (c + chance.choice([1, 2, 3])) % 12 for c in labels]
    pairs = list(zip(labels, predictions))
    sets = sets_from_confusion(torch.tensor(labels), torch.tensor(predictions), 12, similar=3, dissimilar=4, seed=5)
    assert sets
    for target, one in sets.items():
        times = {c: pairs.count((target, c)) + pairs.count((c, target)) for c in range(12) if c != target}
        assert one.similar == tuple(sorted(sorted(times, key=lambda c: (-times[c], c))[:3]))
        assert all(times[c] == 0 for c in one.dissimilar)
        assert len(one.dissimilar) == min(4, list(times.values()).count(0))


def test_the_draw_of_never_confused_classes_is_that_of_groups() -> None:
    labels, predictions = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([1, 2, 3, 4, 1])
    sets = sets_from_confusion(labels, predictions, 30, dissimilar=6, seed=3, targets=[0])
    assert sets == sets_from_groups(["a"] * 5 + ["b"] * 25, dissimilar=6, seed=3, targets=[0])


def test_a_teacher_with_too_few_mistakes_is_refused() -> None:
    right = torch.arange(6)
    with pytest.raises(InputError, match=r"no class that the teacher confuses with 4 others.*centroids"):
        sets_from_confusion(right, right, 6)
    with pytest.raises(InputError, match=r"target class 2.*confuses with 0 of 5 classes.*lower min_similar"):
        sets_from_confusion(right, right, 6, similar=1, targets=[2])
    every = (
        torch.arange(3).repeat_interleave(3),
        torch.arange(3).repeat(3),
    )  # each taken for each: nothing is dissimilar
    with pytest.raises(InputError, match="not with all"):
        sets_from_confusion(*every, 3, similar=1, targets=[0])
