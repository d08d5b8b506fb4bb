"""Publishing by the real client to a strict server on loopback: interrupted, repeated, refused, and loaded without us."""

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from hf_lskd.card import render
from hf_lskd.card_data import SOURCES
from hf_lskd.card_licences import IDENTIFIERS, licence
from hf_lskd.errors import InputError
from hf_lskd.hub.publish import check_repo_id, check_revision
from tests.hub_metadata import metadata_errors
from tests.hub_run import CELL, OTHER, TEACHER
from tests.hub_server import NOBODY, READER, WRITER, Hub, Refused

ROOT = Path(__file__).resolve().parents[1]


def left_by(which: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `tests.hub_run`: run once, also when several processes share these tests."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / f"hub-{which}"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "result.json").is_file():
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "HF_"))}
            environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "tests.hub_run", str(shared), which]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
            (shared / "log").write_text(done.stdout + done.stderr)
            assert done.returncode == 0, done.stderr[-3000:]
    return shared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return left_by("publish", tmp_path_factory)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return left_by("load", tmp_path_factory)


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def held(folder: Path, repo_id: str, branch: str = "main") -> dict[str, bytes]:
    at = folder / "hub" / repo_id / branch
    return {str(p.relative_to(at)): p.read_bytes() for p in at.rglob("*") if p.is_file()}


def test_a_dry_run_shows_files_and_sizes_and_asks_nobody(said: dict[str, Any], folder: Path) -> None:
    dry = said["dry"]
    assert (dry["code"], dry["requests"], dry["received"]) == (0, 0, 0)
    weights = folder / "images" / "cells" / CELL / "model" / "model.safetensors"
    assert f"{weights.stat().st_size:,}  model.safetensors" in dry["out"]
    assert [line.split()[-1] for line in dry["out"].splitlines()[1:-1]] == [
        *("README.md", "record.json", "config.json", "model.safetensors")
    ]


def test_killed_in_the_middle_of_a_file_and_repeated_there_is_one_consistent_repository(
    said: dict[str, Any], folder: Path
) -> None:
    killed, after, again = said["killed in a file"], said["after the kill"], said["repeated"]
    assert killed == {"stopped": True, "by": 9, "received": 0, "commits": 1}  # the Hub's own commit alone
    assert (after["code"], after["received"], after["commits"]) == (0, 1, 2)  # ours is one commit
    assert (again["code"], again["received"], again["commits"]) == (0, 1, 2)
    files = held(folder, "ada/one")
    model = folder / "images" / "cells" / CELL / "model"
    assert set(files) == {".gitattributes", "README.md", "record.json", "config.json", "model.safetensors"}
    assert all(files[name] == (model / name).read_bytes() for name in ("config.json", "model.safetensors"))


def test_killed_before_the_commit_nothing_is_uploaded_twice(said: dict[str, Any]) -> None:
    killed, after = said["killed before the commit"], said["after that kill"]
    assert (killed["by"], killed["commits"]) == (9, 1)
    assert (after["code"], after["commits"]) == (0, 2)
    assert killed["received"] == after["received"] == said["repeated"]["received"] + 1
    arrived = said["hub"]["received"]
    assert len(arrived) == len(set(arrived)) == 3  # of the three cells, in six repositories


def test_a_lost_network_is_one_sentence_and_the_next_run_goes_on(said: dict[str, Any]) -> None:
    lost, back = said["network lost"], said["network back"]
    assert lost["code"] == 2
    assert re.fullmatch(
        r"hf-lskd: the Hub cannot be reached for ada/three .*Run the same command again.*\n", lost["err"]
    )
    assert (back["code"], back["received"], back["commits"]) == (0, lost["received"], 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no token", "no token for the Hub"),
        ("wrong token", "does not take this token"),
        ("reading token", "may not write to ada/new"),
        ("another's name", "may not write to bob/new"),
        ("other cell there", f"ada/one exists and holds {CELL}"),
        ("foreign files there", r"ada/foreign exists and holds files that are not from hf-lskd \(notes.txt\)"),
        ("another study of that name", "ada/tiny exists and holds tiny"),
        ("name ../up", "--repo-id '../up'"),
        ("name ada/../up", "--repo-id 'ada/../up'"),
        ("name a/b/c", "--repo-id 'a/b/c'"),
        ("name ada/x.git", "--repo-id 'ada/x.git'"),
        ("name ada/a--b", "--repo-id 'ada/a--b'"),
        ("unknown licence", "--license Apache 2.0.*Did you mean 'apache-2.0'"),
        ("bad licence", "refuses the card of ada/licence .*license"),
        ("not a cell", "has no record.json"),
        ("no folder", "nowhere is no folder"),
        ("unfinished", r"is not finished \(out of memory\)"),
        ("pickled", "no weights as safetensors, but pytorch_model.bin"),
        ("cut", "model.safetensors cannot be read"),
        ("token in a file", "config.json holds what looks like a token"),
        ("no network", "the Hub cannot be reached"),
    ],
)
def test_what_cannot_be_published_is_said_in_one_line(name: str, message: str, said: dict[str, Any]) -> None:
    found = said[name]
    assert found["code"] == 2
    assert found["err"].count("\n") == 1
    assert re.search(message, found["err"])
    if name not in ("other cell there", "foreign files there", "another study of that name", "no network"):
        assert found["commits"] == 0  # no repository was made


def test_what_is_refused_leaves_the_repository_as_it_was(said: dict[str, Any], folder: Path) -> None:
    assert json.loads(held(folder, "ada/one")["record.json"])["name"] == CELL
    assert set(held(folder, "ada/foreign")) == {".gitattributes", "notes.txt"}
    assert said["hub"]["repos"]["ada/foreign"]["commits"] == 2


def test_a_study_has_a_repository_for_each_cell_and_an_index_that_links_them(
    said: dict[str, Any], folder: Path
) -> None:
    files = held(folder, "ada/tiny")
    study = folder / "images"
    for name in ("study.json", "results.csv", "eta.csv", "eta_chance.csv", "report.html"):
        assert files[name] == (study / name).read_bytes()
    for cell in (CELL, OTHER, TEACHER):
        assert f"[{cell}](https://huggingface.co/ada/tiny-{cell})" in files["README.md"].decode()
        assert json.loads(held(folder, f"ada/tiny-{cell}")["record.json"])["name"] == cell
    student = ModelCard(held(folder, f"ada/tiny-{CELL}")["README.md"].decode())
    assert (student.data.base_model, student.data["base_model_relation"]) == (f"ada/tiny-{TEACHER}", "finetune")
    assert all(repo["commits"] == 2 for name, repo in said["hub"]["repos"].items() if name.startswith("ada/tiny"))
    assert said["study again"]["code"] == 0
    assert said["study again"]["received"] == said["study"]["received"]


def test_a_branch_begins_empty_and_main_keeps_its_model(said: dict[str, Any], folder: Path) -> None:
    assert said["branch"]["code"] == 0
    assert json.loads(held(folder, "ada/one", "T1")["record.json"])["name"] == OTHER
    assert json.loads(held(folder, "ada/one")["record.json"])["name"] == CELL


def test_no_pickle_was_ever_committed(said: dict[str, Any], folder: Path) -> None:
    suffixes = {Path(name).suffix for name in said["hub"]["ever"]} - {""}
    assert suffixes == {".json", ".md", ".safetensors", ".csv", ".html", ".txt"}
    assert (folder / "images" / "cells" / CELL / "model" / "training_args.bin").is_file()


def test_no_token_is_in_any_file_or_output(folder: Path) -> None:
    tokens = [token.encode() for token in (WRITER, READER, NOBODY)]
    damaged = folder / "damaged"  # holds the one that was put there on purpose
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(damaged)]
    assert len(files) > 60
    assert [str(path) for path in files if any(token in path.read_bytes() for token in tokens)] == []


# ---- Trained models, and what another environment makes of them


@pytest.mark.slow
def test_it_loads_without_us_the_same_to_the_last_bit(trained: Path) -> None:
    folder, said = trained, json.loads((trained / "result.json").read_text())
    assert said["loading"]["code"] == 0, said["loading"]["err"]
    found, wanted = load_file(folder / "found.safetensors"), load_file(folder / "wanted.safetensors")
    ours = load_file(folder / "images" / "cells" / CELL / "model" / "model.safetensors")
    for prefix in ("timm.", "transformers.timm_model."):
        assert {k.removeprefix(prefix) for k in found if k.startswith(prefix)} == ours.keys()
        assert all(torch.equal(found[prefix + name], value) for name, value in ours.items())
    pairs = load_file(folder / "pairs" / "cells" / CELL / "model" / "model.safetensors")
    assert pairs
    assert all(torch.equal(found[f"translator.{name}"], value) for name, value in pairs.items())
    for library, name in (("transformers", "logits"), ("timm", "logits"), ("translator", "translator")):
        assert relative(found[f"logits.{library}"], wanted[name]) <= 1e-6


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.slow
def test_the_pipeline_names_our_classes_and_generate_translates(trained: Path) -> None:
    from tests.tiny_study import CLASSES

    folder = trained
    found, wanted = load_file(folder / "found.safetensors"), load_file(folder / "wanted.safetensors")
    heard = json.loads((folder / "said.json").read_text())
    assert heard["classes"] == len(CLASSES)
    best = heard["pipeline"][0]
    assert best["label"] == CLASSES[int(found["picture"].argmax())]
    assert best["score"] == pytest.approx(float(found["picture"].max()), rel=1e-5)
    assert torch.equal(found["tokens"], wanted["tokens"])


@pytest.mark.slow
def test_private_is_private(trained: Path) -> None:
    repos = json.loads((trained / "result.json").read_text())["hub"]["repos"]
    assert [name for name, repo in repos.items() if repo["private"]] == ["ada/pairs"]


@pytest.mark.slow
def test_a_trainer_pushes_the_same_card_and_only_what_may_be_shared(trained: Path) -> None:
    folder, said = trained, json.loads((trained / "result.json").read_text())
    files = held(folder, "ada/pushed")
    assert set(files) == {".gitattributes", "README.md", "record.json", "config.json", "model.safetensors"}
    record = json.loads(files["record.json"])
    assert files["README.md"].decode() == render(record)
    assert (record["role"], record["temperature"], record["metrics"]["nll"] > 0) == ("student", 2.0, True)
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.datasets, card.data.library_name) == (
        "apache-2.0",
        ["random-pictures"],
        "timm",
    )
    assert files["model.safetensors"] == (folder / "pushed" / "model.safetensors").read_bytes()
    assert "'checkpoint'" in said["checkpoints"]
    assert (folder / "pushed" / "training_args.bin").is_file()  # it was there to be uploaded
    assert {Path(name).suffix for name in said["hub"]["ever"]} == {"", ".json", ".md", ".safetensors"}
    kept = [path for path in (folder / "pushed").rglob("*") if path.is_file()]
    assert [path for path in kept if WRITER.encode() in path.read_bytes()] == []


# ---- The server is as strict as it has to be


def test_the_server_refuses_what_the_hub_refuses() -> None:
    hub = Hub()
    hub.create(WRITER, {"name": "x"})
    repo = hub.repos["ada/x"]
    header = {"key": "header", "value": {"summary": "s"}}
    pointer = {"key": "lfsFile", "value": {"path": "a.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 1}}
    small = {"key": "file", "value": {"path": "a.safetensors", "content": "aGk=", "encoding": "base64"}}
    outside = {"key": "file", "value": {"path": "../a.txt", "content": "aGk=", "encoding": "base64"}}
    for lines in ([small], [header], [header, pointer], [header, small], [header, outside]):
        with pytest.raises(Refused):
            hub.commit(repo, "main", lines)
    stale = {"key": "header", "value": {"summary": "s", "parentCommit": "0" * 40}}
    fine = {"key": "file", "value": {"path": "a.txt", "content": "aGk=", "encoding": "base64"}}
    with pytest.raises(Refused) as moved:
        hub.commit(repo, "main", [stale, fine])
    assert moved.value.status == 412
    for call in (lambda: hub.create(WRITER, {"name": "x"}), lambda: hub.create(READER, {"name": "y"}),
                 lambda: hub.keep("0" * 64, 2, b"hi"), lambda: hub.create(WRITER, {"name": "..up"})):  # fmt: skip
        with pytest.raises(Refused):
            call()


@pytest.mark.parametrize(
    "line",
    ["license: mine", "pipeline_tag: magic", "base_model: ./local", "base_model_relation: distilled", "tags: one",
     "datasets: [a b]", "language: [English]", "model-index: [{name: x}]", "license: [", "metrics: [{a: 1}]"],
)  # fmt: skip
def test_the_server_refuses_metadata_that_the_hub_refuses(line: str) -> None:
    assert metadata_errors(f"---\n{line}\n---\n")[0]
    assert metadata_errors("---\nlicense: mit\n---\n") == ([], [])


@pytest.mark.parametrize("name", ["a b..", "", "..", "a~1", "/a", "a/", "x.lock", "a//b", "-x", "a\n"])
def test_an_impossible_branch_is_refused_at_once(name: str) -> None:
    with pytest.raises(InputError, match=r"--revision .*branch"):
        check_revision(name)


@pytest.mark.parametrize("name", [None, "main", "v1.0", "feature/a-b", "refs/pr/1"])
def test_a_possible_branch_is_taken(name: str | None) -> None:
    check_revision(name)


def test_a_licence_that_is_on_no_list_goes_with_its_name_and_text(said: dict[str, Any], folder: Path) -> None:
    assert said["licence of our own"]["code"] == 0
    files = held(folder, "ada/four")
    assert files["LICENSE"] == b"Do as you like."
    data = ModelCard(files["README.md"].decode()).data
    assert (data.license, data.license_name, data.license_link) == ("other", "our-own-1.0", "LICENSE")
    assert "Licence of the weights: our-own-1.0." in files["README.md"].decode()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("MIT", None, None), "--license MIT.*Did you mean 'mit'"),
        (("", None, None), "--license ''. Allowed: an identifier of"),
        (("other", "", None), "--license-name ''. Allowed: a short name"),
        (("other", "mine", ""), "--license-link ''. Allowed: an address"),
        (("gpl3", None, None), "Did you mean .*'gpl-3.0'"),
        (("other", None, None), "--license other without --license-name"),
        (("other", "My Licence", None), "--license-name My Licence"),
        (("other", "mit", None), "--license-name mit"),
        (("other", "mine", "nowhere.txt"), "--license-link nowhere.txt"),
        (("mit", "mine", None), "--license-name with --license mit"),
        ((None, None, "https://a.b"), "--license-link without --license"),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_refused_here(given: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        licence(*given)


def test_a_licence_is_what_the_card_says() -> None:
    assert licence(None, None, None) == {}
    assert licence("cc-by-nc-4.0", None, None) == {"license": "cc-by-nc-4.0"}
    found = licence("other", "mine-1.0", "https://a.b/c")
    assert found == {"license": "other", "license_name": "mine-1.0", "license_link": "https://a.b/c"}
    assert {source["license"] for source in SOURCES.values() if "license" in source} <= IDENTIFIERS


def test_a_bad_name_is_told_by_its_option() -> None:
    with pytest.raises(InputError, match="--teacher-repo 'bad name'"):
        check_repo_id("bad name", "--teacher-repo")
