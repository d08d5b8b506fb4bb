"""WordNet's noun file, where it is found, and the S1 and S2 that come of it."""

import os
import random
import zipfile
from pathlib import Path

import pytest

from hf_lskd.analysis import Nouns, SimilarSets, read_nouns, sets_from_wordnet
from hf_lskd.analysis.wordnet import usual_places
from hf_lskd.errors import InputError
from tests.wordnet_files import CLASSES, KENNEL, Entry, noun_file

VARIABLES = ("WNSEARCHDIR", "WNHOME", "NLTK_DATA")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def kennel(changes: dict[str, Entry] | None = None) -> tuple[list[str], Nouns]:
    data, ids = noun_file(KENNEL | (changes or {}))
    return [ids[name] for name in CLASSES], Nouns(data)


# ---- The file


def test_a_line_gives_words_and_hypernyms_and_nothing_else() -> None:
    words = [f"word{i}" for i in range(11)]  # their number is hexadecimal: 0b
    data, ids = noun_file({"top": (["top"], []), "other": (["other"], []), "Rex": (words, ["top", "other"])})
    nouns = Nouns(data)
    found = nouns.synset(int(ids["Rex"][1:]))  # an instance: its pointers are @i
    assert found.words == tuple(words)
    assert [f"n{offset:08d}" for offset in found.hypernyms] == [ids["top"], ids["other"]]
    assert nouns.synset(int(ids["top"][1:])).hypernyms == ()


def test_steps_up_are_the_fewest_where_ways_differ() -> None:
    entries: dict[str, Entry] = {
        "root": (["root"], []),
        "b": (["b"], ["root"]),
        "c": (["c"], ["b"]),
        "leaf": (["leaf"], ["c", "b"]),
    }
    data, ids = noun_file(entries)
    at = {name: int(each[1:]) for name, each in ids.items()}
    assert Nouns(data).above(at["leaf"]) == {at["leaf"]: 0, at["c"]: 1, at["b"]: 1, at["root"]: 2}


@pytest.mark.parametrize("shift", [-1, 1, 10**7])
def test_an_id_that_is_no_start_of_a_line_is_refused(shift: int) -> None:
    data, ids = noun_file(KENNEL)
    wrong = int(ids["dog"][1:]) + shift
    with pytest.raises(InputError, match=rf"synset n{wrong:08d}.*a noun of WordNet 3\.0.*eight digits"):
        Nouns(data).synset(wrong)


# ---- Where it is


def test_a_folder_and_nltks_zip_are_read_alike(tmp_path: Path) -> None:
    data, _ = noun_file(KENNEL)
    (tmp_path / "data.noun").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "wordnet.zip", "w") as archive:
        archive.writestr("wordnet/data.noun", data)
    assert read_nouns(tmp_path).data == read_nouns(tmp_path / "wordnet.zip").data == data


@pytest.mark.parametrize(
    ("variable", "inside"),
    [("WNSEARCHDIR", "."), ("WNHOME", "dict"), ("NLTK_DATA", "corpora/wordnet"), ("NLTK_DATA", "corpora/wordnet.zip")],
)
def test_it_is_found_where_the_usual_variables_say(
    variable: str, inside: str, tmp_path: Path, bare: pytest.MonkeyPatch
) -> None:
    data, _ = noun_file(KENNEL)
    place = tmp_path / inside
    if inside.endswith("zip"):
        place.parent.mkdir(parents=True)
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr("wordnet/data.noun", data)
    else:
        place.mkdir(parents=True, exist_ok=True)
        (place / "data.noun").write_bytes(data)
    given = str(tmp_path) if variable != "NLTK_DATA" else f"{tmp_path / 'none'}{os.pathsep}{tmp_path}"
    bare.setenv(variable, given)
    assert read_nouns().data == data


def test_what_is_not_there_says_where_it_was_looked_for_and_how_to_get_it(
    tmp_path: Path, bare: pytest.MonkeyPatch
) -> None:
    assert {Path("/usr/share/wordnet"), Path.home() / "nltk_data/corpora/wordnet"} <= set(usual_places())
    bare.setenv("WNSEARCHDIR", str(tmp_path))  # looked at alone: a wrong one is not passed over in silence
    with pytest.raises(InputError) as caught:
        read_nouns()
    assert str(tmp_path) in str(caught.value)
    assert "apt-get install wordnet-base" in str(caught.value)
    (tmp_path / "wordnet.zip").write_text("no archive")
    with pytest.raises(InputError, match=r"no data\.noun"):
        read_nouns(tmp_path / "wordnet.zip")


def test_another_version_is_refused_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_bytes(noun_file(KENNEL, version="3.1")[0])
    with pytest.raises(InputError, match=r"of WordNet 3\.0.*is version 3\.1"):
        read_nouns(tmp_path)


# ---- The choice


def test_siblings_come_before_cousins_and_other_kinds_are_dissimilar() -> None:
    synsets, nouns = kennel()
    sets = sets_from_wordnet(synsets, nouns, min_similar=2, dissimilar=9)
    # dogs' direct hypernym has four others; a spaniel's has one, so it is no target; a boat's has two
    assert list(sets) == [0, 1, 2, 5, 6, 7]
    assert sets[0] == SimilarSets((1, 2), (5, 6, 7))
    assert sets[5] == SimilarSets((6, 7), (0, 1, 2, 3, 4))
    assert sets_from_wordnet(synsets, nouns, min_similar=3)[0].similar == (1, 2, 3)
    assert sets_from_wordnet(synsets, nouns, min_similar=4)[1].similar == (0, 2, 3, 4)


def test_a_named_target_may_have_its_similar_classes_further_up() -> None:
    synsets, nouns = kennel()
    sets = sets_from_wordnet(synsets, nouns, min_similar=2, targets=[3])
    assert sets == {3: SimilarSets((0, 4), (5, 6, 7))}  # its sibling, then the dog with the lowest offset


def test_of_equally_near_classes_those_that_share_a_word_come_last() -> None:
    synsets, nouns = kennel({"dog0": (["dog0", "Cur"], ["dog"]), "spaniel1": (["spaniel1", "cur"], ["spaniel"])})
    assert sets_from_wordnet(synsets, nouns, min_similar=1, targets=[1])[1].similar == (2,)
    plain, files = kennel()
    assert sets_from_wordnet(plain, files, min_similar=1, targets=[1])[1].similar == (0,)
    elsewhere, files = kennel({"dog0": (["dog0", "cur"], ["dog"]), "boat1": (["boat1", "cur"], ["boat"])})
    assert sets_from_wordnet(elsewhere, files, min_similar=1, targets=[1])[1].similar == (0,)  # not under the home


def test_the_choice_is_a_function_of_synsets_files_and_settings() -> None:
    synsets, nouns = kennel()
    every = sets_from_wordnet(synsets, nouns, min_similar=2, dissimilar=2)
    assert sets_from_wordnet(synsets, Nouns(nouns.data), min_similar=2, dissimilar=2) == every
    assert sets_from_wordnet(synsets, nouns, min_similar=2, dissimilar=2, targets=[5, 1]) == {1: every[1], 5: every[5]}
    seeds = [sets_from_wordnet(synsets, nouns, min_similar=2, dissimilar=2, seed=seed) for seed in range(8)]
    assert len({sets[0].dissimilar for sets in seeds}) == 3  # each pair of the three boats
    assert {sets[0].similar for sets in seeds} == {(1, 2)}


def test_on_any_graph_the_sets_are_what_the_definition_says() -> None:
    """Random graphs with several hypernyms a synset, against ancestors and steps by plain recursion."""
    tried = 0
    for seed in range(30):
        chance = random.Random(seed)
        names = [f"s{i}" for i in range(40)]
        parents: dict[str, list[str]] = {names[0]: []}
        for i, name in enumerate(names[1:], 1):
            parents[name] = chance.sample(names[:i], min(i, chance.choice([1, 1, 1, 2])))
        data, ids = noun_file({name: ([name], above) for name, above in parents.items()})
        classes = chance.sample(names[5:], 16)

        def up(name: str, parents: dict[str, list[str]] = parents) -> dict[str, int]:
            found = {name: 0}
            for parent in parents[name]:
                for other, steps in up(parent).items():
                    found[other] = min(found.get(other, 99), steps + 1)
            return found

        above = {name: up(name) for name in classes}
        under = {name: {c for c in classes if name in above[c]} for name in names}

        def steps(a: str, b: str, above: dict[str, dict[str, int]] = above) -> int:
            return min(above[a][h] + above[b][h] for h in above[a].keys() & above[b].keys())

        for target in range(len(classes)):
            own = classes[target]
            homes = [h for h in above[own] if 3 < len(under[h]) < 16]
            try:
                sets = sets_from_wordnet([ids[c] for c in classes], Nouns(data), min_similar=3, targets=[target])
            except InputError:
                continue
            tried += 1
            nearest = min(above[own][h] for h in homes)
            home = min((h for h in homes if above[own][h] == nearest), key=lambda h: (len(under[h]), ids[h]))
            similar = {classes[c] for c in sets[target].similar}
            left = under[home] - similar - {own}
            assert len(similar) == 3
            assert similar < under[home]
            assert max(steps(own, c) for c in similar) <= min((steps(own, c) for c in left), default=99)
            limit = max(8, len(under[home]))
            far = {c for c in classes if all(len(under[h]) > limit for h in above[own].keys() & above[c].keys())}
            assert {classes[c] for c in sets[target].dissimilar} == far
    assert tried > 100


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["n00000001", "dog"], "synset 'dog'"),
        (["n0000001"], "synset 'n0000001'"),
        (["n00000999", "n00000999"], "'n00000999' of 2 classes"),
        (["n09999999"], "n09999999.*a noun of WordNet 3.0"),
    ],
)
def test_ids_that_name_no_class_of_its_own_are_refused(ids: list[str], message: str) -> None:
    synsets, nouns = kennel()
    with pytest.raises(InputError, match=message):
        sets_from_wordnet([*synsets, *ids], nouns)


def test_targets_without_sets_are_refused() -> None:
    synsets, nouns = kennel()
    with pytest.raises(InputError, match=r"target class 8.*0 to 7"):
        sets_from_wordnet(synsets, nouns, targets=[8])
    with pytest.raises(InputError, match=r"target class 5 \(n\d{8}, boat0\).*3 other classes.*lower min_similar"):
        sets_from_wordnet(synsets, nouns, min_similar=3, targets=[5])
    with pytest.raises(InputError, match=r"no class whose direct hypernym has 5 other classes.*of 8"):
        sets_from_wordnet(synsets, nouns, min_similar=5)
    with pytest.raises(InputError, match="no class whose direct hypernym"):  # all of one kind: nothing is dissimilar
        sets_from_wordnet(synsets[:5], nouns, min_similar=2)
    with pytest.raises(InputError, match="at least 1"):
        sets_from_wordnet(synsets, nouns, dissimilar=0)


# ---- The real files

RETRIEVERS = {"n02099267", "n02099429", "n02099601", "n02099712", "n02099849"}  # flat-coated to Chesapeake Bay
SNAKES = {"n01728572", "n01728920", "n01729322", "n01734418", "n01737021"}  # thunder, ringneck, hognose, king, water


@pytest.fixture(scope="module")
def imagenet() -> tuple[list[str], Nouns]:
    from timm.data import ImageNetInfo

    try:
        return list(ImageNetInfo().label_names()), read_nouns()
    except InputError as error:
        pytest.skip(f"WordNet 3.0 is not here: {error}")


@pytest.mark.parametrize("group", [RETRIEVERS, SNAKES])
def test_the_papers_ten_classes_come_out_as_its_two_groups(group: set[str], imagenet: tuple[list[str], Nouns]) -> None:
    synsets, nouns = imagenet
    index = {name: c for c, name in enumerate(synsets)}
    sets = sets_from_wordnet(synsets, nouns)
    for target in group:
        one = sets[index[target]]
        assert {synsets[c] for c in one.similar} == group - {target}
        assert len(one.dissimilar) == 20
        chains = [nouns.above(int(synsets[c][1:])) for c in one.dissimilar]
        assert not any(15388 in chain for chain in chains)  # n00015388 is animal


def test_every_class_of_imagenet_is_a_noun_of_wordnet_by_its_name(imagenet: tuple[list[str], Nouns]) -> None:
    from timm.data import ImageNetInfo

    (synsets, nouns), info = imagenet, ImageNetInfo()
    for c, synset in enumerate(synsets):
        named = info.index_to_description(c).split(", ")
        assert [word.replace("_", " ") for word in nouns.synset(int(synset[1:])).words] == named
