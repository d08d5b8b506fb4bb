"""A teacher's logits read from disk are each example's own, and training on them is training on the teacher."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_lskd.errors import InputError, RecipeErrors
from hf_lskd.recipe import recipe_from_dict
from hf_lskd.study.runner import run_study
from hf_lskd.teacher_cache import (
    FORMAT,
    META,
    Rows,
    TeacherCache,
    described,
    example_keys,
    example_lengths,
    model_digest,
    open_cache,
)
from tests.conftest import VIT, assert_same_weights, tiny, weights
from tests.resume_run import make_trainer
from tests.test_lockstep import assert_same_studies
from tests.test_translation import recipe_of, text  # noqa: F401  # a fixture
from tests.tiny_study import finished_study, values, write_images

MADE = {"teacher": "t", "data": "d"}
CLASSES = 6


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def taught(inputs: Any) -> Tensor:
    """A teacher whose logits anybody can work out from the picture."""
    return inputs["pixel_values"].flatten(1)[:, :CLASSES] * 3


def kept(root: Path, images: Tensor, top_k: int | None = None, made_of: dict | None = None) -> TeacherCache:
    cuts = [{"pixel_values": part} for part in images.split(4)]
    return open_cache(root, made_of or MADE, lambda: cuts, taught, lambda: len(images), top_k)


def test_each_example_has_its_own_logits_in_any_order_and_company(tmp_path: Path) -> None:
    images = pictures(11)
    cache = kept(tmp_path, images)
    for order in (torch.randperm(11), torch.tensor([3]), torch.tensor([5, 5, 0])):
        asked = {"pixel_values": images[order]}
        assert torch.equal(cache.logits(asked), taught(asked))


def test_trap_14_a_cache_that_was_shuffled_or_keyed_anew_never_gives_anothers_logits(tmp_path: Path) -> None:
    images = pictures(8)
    cache = kept(tmp_path, images)
    keys = np.load(cache.folder / "keys.npy")
    np.save(cache.folder / "keys.npy", keys[::-1])
    with pytest.raises(InputError, match=r"keys\.npy is damaged"):
        TeacherCache(cache.folder, {**MADE, "format": FORMAT, "top_k": None})
    shuffled = kept(tmp_path / "other", images[torch.randperm(8)])
    assert torch.equal(shuffled.logits({"pixel_values": images}), taught({"pixel_values": images}))
    other = images.clone()
    other[2, 0, 0, 0] += 1e-6
    with pytest.raises(InputError, match="no logits of an example"):
        cache.logits({"pixel_values": other})


def test_a_key_is_found_whole_at_its_first_row_among_keys_that_begin_alike() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (300, 16), np.uint8)
    keys[:, :8] = keys[np.arange(300) % 5, :8]  # five first halves
    keys[200:] = keys[:100]
    rows = Rows(keys)
    assert [rows.of(key.tobytes()) for key in keys] == [*range(200), *range(100)]
    assert rows.of(keys[0, :8].tobytes() + bytes(8)) is None
    assert rows.of(bytes(16)) is None


@pytest.mark.parametrize("name", ["values.npy", "offsets.npy", META])
def test_a_damaged_file_is_found_out(name: str, tmp_path: Path) -> None:
    cache = kept(tmp_path, pictures(8))
    content = bytearray((cache.folder / name).read_bytes())
    content[len(content) // 2] ^= 255
    (cache.folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"damaged|another"):
        kept(tmp_path, pictures(8))
    (cache.folder / name).unlink()
    with pytest.raises(InputError, match="damaged"):
        kept(tmp_path, pictures(8))


def test_another_teacher_or_k_has_a_cache_of_its_own_and_a_folder_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    images = pictures(8)
    first, second = kept(tmp_path, images), kept(tmp_path, images, made_of={**MADE, "teacher": "u"})
    third = kept(tmp_path, images, top_k=2)
    assert len({first.folder, second.folder, third.folder}) == 3
    with pytest.raises(InputError, match="logits of another teacher"):
        TeacherCache(first.folder, {**MADE, "teacher": "u", "format": FORMAT, "top_k": None})


def test_a_cache_of_an_earlier_form_is_refused_and_made_again_beside_it(tmp_path: Path) -> None:
    images = pictures(8)
    new = kept(tmp_path, images)
    old = Path(shutil.copytree(new.folder, tmp_path / "old"))
    meta = json.loads((old / META).read_text())
    (old / META).write_text(json.dumps({**meta, "made_of": {**meta["made_of"], "format": 1}}))
    with pytest.raises(InputError, match=r"old holds logits of another format\. Allowed: format 2\. Delete the folder"):
        TeacherCache(old, described(MADE, None))
    page = json.dumps({**MADE, "format": 1, "top_k": None}, sort_keys=True)
    assert new.folder.name != hashlib.sha256(page.encode()).hexdigest()[:24]  # where the earlier version kept its own


def test_a_weight_a_buffer_and_the_configuration_are_in_a_models_hash() -> None:
    digests = {model_digest(tiny(VIT, 1)), model_digest(tiny(VIT, 2))}
    model = tiny(VIT, 1)
    assert model_digest(model) in digests
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    digests.add(model_digest(model))
    model = tiny(VIT, 1)
    model.config.id2label = {0: "another"}
    digests.add(model_digest(model))
    assert len(digests) == 4


def test_of_the_classes_that_are_not_kept_the_total_probability_is(tmp_path: Path) -> None:
    images = pictures(9)
    found = kept(tmp_path, images, top_k=2).logits({"pixel_values": images})
    exact = taught({"pixel_values": images})
    values, where = exact.topk(2)
    assert torch.equal(found.gather(1, where), values)
    torch.testing.assert_close(found.logsumexp(-1), exact.logsumexp(-1))
    rest = found.softmax(-1).scatter(1, where, 0.0)
    torch.testing.assert_close(rest.sum(-1), 1 - exact.softmax(-1).gather(1, where).sum(-1))
    assert rest[0].unique().numel() == 2  # 0 and one value
    assert torch.equal(kept(tmp_path, images, top_k=CLASSES).logits({"pixel_values": images}), exact)


def test_padding_is_no_part_of_a_sequence(tmp_path: Path) -> None:
    short = {
        "input_ids": torch.tensor([[5, 6, 2], [7, 2, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "labels": torch.tensor([[4, -100, 2], [9, 2, -100]]),
    }
    wide = {
        "input_ids": torch.tensor([[7, 2, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 0, 0, 0]]),
        "labels": torch.tensor([[9, 2, -100, -100]]),
    }
    assert example_lengths(short) == [3, 2]
    assert example_keys(wide) == example_keys(short)[1:]
    spoken = torch.randn(2, 3, 7)
    cache = open_cache(tmp_path, MADE, lambda: [short], lambda inputs: spoken, lambda: 5)
    assert torch.equal(cache.logits(wide)[0, :2], spoken[1, :2])
    assert cache.logits(wide).shape == (1, 4, 7)
    for change in ({"labels": torch.tensor([[9, 3]])}, {"input_ids": torch.tensor([[7, 3, 0, 0, 0]])}):
        assert example_keys({**wide, **change}) != example_keys(wide)


def test_two_processes_that_fill_at_once_leave_one_whole_cache(tmp_path: Path) -> None:
    images = pictures(40)
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                ok = torch.equal(
                    kept(tmp_path, images).logits({"pixel_values": images}), taught({"pixel_values": images})
                )
                os._exit(0 if ok else 1)
            finally:
                os._exit(2)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_filling_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(inputs: Any) -> Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        open_cache(tmp_path, MADE, lambda: [{"pixel_values": pictures(4)}], broken, lambda: 4)
    assert list(tmp_path.iterdir()) == []


# ---- In training


@pytest.mark.parametrize("settings", [{}, {"kd_top_k": 3, "teacher_cache_top_k": 3}], ids=["whole", "top 3"])
def test_training_on_a_cache_is_training_on_the_teacher_to_the_last_bit(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    common = {"augmentation": "none", "save_strategy": "no", **settings}
    uncached = make_trainer(tmp_path / "uncached", **{**common, "teacher_cache_top_k": None})
    uncached.train()
    for run in ("filled", "read"):
        cached = make_trainer(tmp_path / run, **common, teacher_cache=str(tmp_path / "cache"))
        if run == "read":  # the teacher has reported; any answer of its own would be wrong from here on
            cached.teacher.reported = True
            cached.teacher.members[0].forward = lambda *a, **k: pytest.fail("the teacher was run")
        cached.train()
        assert_same_weights(weights(cached.model), weights(uncached.model))


def test_under_bf16_the_cache_holds_what_the_teacher_says_in_bf16(tmp_path: Path) -> None:
    settings = {"augmentation": "none", "save_strategy": "no", "max_steps": 1, "teacher_cache": str(tmp_path / "cache")}
    values = []
    for name, precision in (("float32", {}), ("bf16", {"bf16": True, "use_cpu": True})):
        trainer = make_trainer(tmp_path / name, **settings, **precision)
        trainer.train()
        values.append(torch.from_numpy(np.array(trainer.teacher.store.values)))
    exact, rounded = values
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert not torch.equal(exact, exact.bfloat16().float())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 2}, "teacher_cache with an ensemble.*one teacher"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last.*batches with every example"),
    ],
    ids=["ensemble", "drop_last"],
)
def test_an_ensemble_and_left_out_examples_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, augmentation="none", teacher_cache=str(tmp_path / "cache"), **settings)
    with pytest.raises(InputError, match=message):
        trainer.train()
    assert not (tmp_path / "cache").exists()


def test_random_data_and_too_few_kept_classes_are_refused(tmp_path: Path) -> None:
    for settings in ({"augmentation": "standard"}, {"augmentation": "none", "mix": {"mixup": 0.2}}):
        with pytest.raises(InputError, match="look the same in every epoch"):
            make_trainer(tmp_path, **settings, teacher_cache=str(tmp_path / "cache")).train()
    with pytest.raises(InputError, match="as many kept as distilled"):
        make_trainer(
            tmp_path, augmentation="none", teacher_cache=str(tmp_path), teacher_cache_top_k=2, kd_top_k=3
        ).train()


def test_a_translation_study_with_a_cache_is_the_one_without(text: Path, tmp_path: Path) -> None:  # noqa: F811
    for name, more in (("with", "switches: {teacher_cache: logits}"), ("without", "")):
        page = recipe_of(text, more=more).to_dict()
        page |= {"eta": None, "grid": {**page["grid"], "label_smoothing": [0.1]}}
        run_study(recipe_from_dict(page), tmp_path / name, lockstep=name == "with")
    cells = tmp_path / "with" / "cells"
    assert len(list((cells / "teacher-a0.1-s0" / "teacher_cache").iterdir())) == 1
    assert_same_studies(tmp_path / "with", tmp_path / "without", students=2)


def test_a_recipe_with_a_cache_and_chance_in_its_data_is_refused(tmp_path: Path) -> None:
    page = {**values(tmp_path), "switches": {"teacher_cache": 8}}
    assert recipe_from_dict(page).switches.teacher_cache == 8
    for more, received in (
        ({"teacher": {**page["teacher"], "ensemble": [0, 1]}}, "8 with an ensemble"),
        ({"grid": {**page["grid"], "kd_top_k": [4, 9]}}, "8 with kd_top_k 9"),
        ({"training": {**page["training"], "dataloader_drop_last": True}}, "8 with dataloader_drop_last"),
    ):
        with pytest.raises(RecipeErrors, match=rf"switches\.teacher_cache: received {received}"):
            recipe_from_dict({**page, **more})
    page["data"] |= {"augmentation": "standard"}
    with pytest.raises(RecipeErrors, match=r"switches\.teacher_cache: received 8 with data\.augmentation"):
        recipe_from_dict(page)


def test_the_size_is_said_before_and_a_full_disk_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_lskd import teacher_cache

    with caplog.at_level("INFO", "hf_lskd"):
        kept(tmp_path, pictures(8))
    assert "8 items of 6 of 6 classes, 0.0 MiB" in caplog.text
    usage = teacher_cache.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match="room on the disk"):
        kept(tmp_path / "small", pictures(8))
    assert json.loads((kept(tmp_path, pictures(8)).folder / META).read_text())["classes"] == CLASSES


def test_a_study_says_the_size_once_and_that_fewer_classes_are_there_than_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page = values(write_images(tmp_path / "images"))
    page |= {"eta": None, "projection": None, "switches": {"teacher_cache": 64}}
    page["grid"] |= {"label_smoothing": [0.1]}
    finished_study(page, tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if "cache" in line]
    assert said == ["hf-lskd: Teacher cache: 96 items of 6 of 6 classes (64 were asked for), 0.0 MiB."]
    (folder,) = (tmp_path / "run" / "cells" / "teacher-a0.1-s0" / "teacher_cache").iterdir()
    assert not (folder / "indices.npy").exists()  # whole
