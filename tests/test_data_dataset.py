"""The dataset: pure keys, the same numbers whoever loads them, one fast path that equals the slow one."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_lskd.data import EpochSampler, ImageDataset
from hf_lskd.data.images import ArrayImages
from hf_lskd.errors import InputError

CLASSES = 5
CONFIG: dict[str, Any] = {
    "input_size": (3, 12, 12),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
AUGMENTATION = {"random_resized_crop": {"scale": [0.4, 1.0]}, "rotation": 10, "color_jitter": {"contrast": 0.3}}


def images(n: int = 40, size: int = 12, colour: bool = False) -> ArrayImages:
    chance = np.random.default_rng(0)
    shape = (n, size, size, 3) if colour else (n, size, size)
    return ArrayImages(chance.integers(0, 256, shape, dtype=np.uint8), np.arange(n) % CLASSES)


def dataset(**options: Any) -> ImageDataset:
    split = options.pop("images", None) or images()
    return ImageDataset(split, options.pop("data_config", CONFIG), num_classes=CLASSES, **options)


def augmented(**options: Any) -> ImageDataset:
    return dataset(**{"augmentation": AUGMENTATION, "train": True, **options})


def by_key(loaded: DataLoader[Any], epoch: int) -> dict[tuple[int, int], bytes]:
    return {
        (epoch, int(i)): x.numpy().tobytes()
        for batch in loaded
        for x, i in zip(batch["pixel_values"], batch["example_id"])
    }


def test_an_example_has_pixels_label_and_id() -> None:
    item = dataset()[7]
    assert set(item) == {"pixel_values", "labels", "example_id"}
    assert item["pixel_values"].shape == (3, 12, 12)
    assert item["pixel_values"].dtype == torch.float32
    assert (item["labels"], item["example_id"]) == (2, 7)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("crop_mode", ["center", "border"])
@pytest.mark.parametrize("size", [12, 17])
def test_whole_batches_equal_single_pictures_through_the_transform(colour: bool, crop_mode: str, size: int) -> None:
    config = {**CONFIG, "crop_mode": crop_mode, "crop_pct": 1.0 if size == 12 else 0.9}
    made = dataset(images=images(size=size, colour=colour), data_config=config)
    assert made._pixels is not None
    for index in (0, 5, 39):
        expected = made.transform(made.images.image(index))
        assert torch.equal(made[index]["pixel_values"], expected)


def test_a_grey_image_is_normalised_by_hand() -> None:
    split = images()
    item = dataset(images=split)[3]["pixel_values"]
    for channel in range(3):
        by_hand = (split.pixels[3].astype(np.float32) / 255 - CONFIG["mean"][channel]) / CONFIG["std"][channel]
        np.testing.assert_allclose(item[channel].numpy(), by_hand, rtol=0, atol=1e-6)


def test_a_split_too_large_to_prepare_gives_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = dataset(images=images(size=17))
    monkeypatch.setattr("hf_lskd.data.dataset.PREPARED_LIMIT", 100)
    single = dataset(images=images(size=17))
    assert single._pixels is None
    assert torch.equal(single[4]["pixel_values"], prepared[4]["pixel_values"])


def test_trap_28_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    first = augmented(data_seed=3)[(2, 9)]["pixel_values"]
    assert torch.equal(augmented(data_seed=3)[(2, 9)]["pixel_values"], first)
    assert not torch.equal(augmented(data_seed=4)[(2, 9)]["pixel_values"], first)
    assert not torch.equal(augmented(data_seed=3)[(3, 9)]["pixel_values"], first)
    same_pixels = ArrayImages(np.repeat(images(1).pixels, 2, axis=0), np.array([0, 1]))
    twins = augmented(images=same_pixels)
    assert not torch.equal(twins[0]["pixel_values"], twins[1]["pixel_values"])
    assert torch.equal(twins[0]["pixel_values"], twins[(0, 0)]["pixel_values"])


def test_trap_28_augmentation_ignores_order_company_and_the_global_generators() -> None:
    made = augmented()
    alone = made[(1, 5)]["pixel_values"]
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    in_company = made.__getitems__([(1, 30), (0, 5), (1, 5), (1, 2)])[2]["pixel_values"]
    assert torch.equal(in_company, alone)


def test_trap_28_loading_leaves_the_global_generators_as_they_were() -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()

    made = augmented(mix={"mixup": 0.4, "cutmix": 1.0})
    before = states()
    made.__getitems__([(0, index) for index in range(10)])
    list(made.train_sampler())
    assert states() == before


def test_of_k_versions_epoch_e_reads_that_of_e_mod_k_which_is_the_one_that_it_always_was() -> None:
    made, fresh = augmented(augmentation_versions=3, data_seed=3), augmented(data_seed=3)
    keys = [(epoch, index) for epoch in range(7) for index in (9, 4)]
    for key, item in zip(keys, made.__getitems__(keys)):
        epoch, index = key
        assert torch.equal(item["pixel_values"], fresh[(epoch % 3, index)]["pixel_values"])
        assert (item["example_id"], item["labels"]) == (index, index % CLASSES)
    versions = {made[(epoch, 9)]["pixel_values"].numpy().tobytes() for epoch in range(7)}
    assert len(versions) == 3
    assert fresh.random
    assert not made.random
    sampler = made.train_sampler()
    sampler.set_epoch(3)  # the first version again, in another order
    assert [index for _, index in sampler] != [index for _, index in made.train_sampler()]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"augmentation_versions": 0}, "augmentation_versions: 0.*a whole number from 1"),
        ({"augmentation_versions": True}, "augmentation_versions: True"),
        ({"augmentation_versions": 2.0}, r"augmentation_versions: 2\.0"),
        ({"augmentation_versions": 2, "augmentation": "none"}, "versions without augmentation"),
        ({"augmentation_versions": 2, "mix": {"cutmix": 1.0}}, "versions with mixup or cutmix.*one of the two"),
    ],
)
def test_versions_of_nothing_or_of_mixed_examples_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        augmented(**options)
    assert dataset(augmentation_versions=2)[0]["labels"] == 0  # in evaluation nothing is augmented


@pytest.mark.parametrize(
    "options", [{}, {"augmentation_versions": 2}, {"mix": {"mixup": 0.5}}, {"augmentation": "none"}]
)
def test_trap_28_workers_change_nothing(options: dict[str, Any]) -> None:
    made = augmented(**options)
    seen = []
    for workers, persistent, method in [(0, False, None), (2, True, "fork")]:
        sampler = made.train_sampler()
        loader = DataLoader(
            made, 8, sampler=sampler, num_workers=workers, persistent_workers=persistent, multiprocessing_context=method
        )
        found: dict[tuple[int, int], bytes] = {}
        for epoch in range(2):
            sampler.set_epoch(epoch)
            torch.manual_seed(workers)
            found |= by_key(loader, epoch)
        seen.append(found)
    assert len(seen[0]) == 2 * len(made)
    assert seen[0] == seen[1]
    if options.get("augmentation") != "none":
        assert all(seen[0][0, index] != seen[0][1, index] for index in range(len(made)))


def test_a_dataset_survives_the_trip_to_another_process() -> None:
    made = augmented(mix={"cutmix": 1.0})
    back = pickle.loads(pickle.dumps(made))
    for first, second in zip(made.__getitems__([(1, 2), (1, 3)]), back.__getitems__([(1, 2), (1, 3)])):
        assert torch.equal(first["pixel_values"], second["pixel_values"])
        assert torch.equal(first["labels"], second["labels"])


@pytest.mark.slow  # a spawned worker imports torchvision and timm afresh
def test_trap_28_spawned_workers_load_the_same() -> None:
    made = augmented(images=images(6))
    sampler = made.train_sampler()
    spawned = DataLoader(made, 3, sampler=sampler, num_workers=1, multiprocessing_context="spawn")
    assert by_key(spawned, 0) == by_key(DataLoader(made, 3, sampler=sampler), 0)


def test_without_train_there_is_no_augmentation_and_no_mixing() -> None:
    plain = dataset(augmentation=AUGMENTATION, mix={"mixup": 1.0})
    assert torch.equal(plain[(5, 3)]["pixel_values"], dataset()[3]["pixel_values"])
    assert plain[3]["labels"] == 3


def test_the_sampler_orders_by_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(50, seed)
        sampler.set_epoch(epoch)
        assert len(sampler) == 50
        torch.manual_seed(epoch + 5)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert {epoch for epoch, _ in order(1, 2)} == {2}
    assert sorted(index for _, index in order(1, 2)) == list(range(50))
    indices = [tuple(index for _, index in order(*key)) for key in [(1, 2), (1, 3), (2, 2)]]
    assert len(set(indices)) == 3


def test_the_sampler_keeps_its_epoch_until_told() -> None:
    sampler = EpochSampler(20, 0)
    assert list(sampler) == list(sampler)
    running = iter(sampler)
    first = next(running)
    sampler.set_epoch(1)
    assert [first, *running] == list(EpochSampler(20, 0))


@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixed_labels_are_probabilities_that_say_what_the_pixels_hold(mix: dict[str, float]) -> None:
    # Image k is constant with value k / 255, so the mean of the mixed image says how the pair was shared.
    size, n = 16, CLASSES
    pixels = np.repeat(np.arange(n, dtype=np.uint8), size * size).reshape(n, size, size) * 40
    config = {**CONFIG, "input_size": (3, size, size), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    made = dataset(images=ArrayImages(pixels, np.arange(n)), data_config=config, train=True, mix=mix)
    mixed = 0
    for epoch in range(12):
        for item in made.__getitems__([(epoch, index) for index in range(n)]):
            labels = item["labels"]
            assert labels.shape == (CLASSES,)
            assert labels.dtype == torch.float32
            assert labels.min() >= 0
            assert labels.sum() == pytest.approx(1.0, abs=1e-6)
            expected = float(labels @ (torch.arange(n) * 40 / 255))
            assert float(item["pixel_values"].mean()) == pytest.approx(expected, abs=1e-5)
            mixed += int(labels.max() < 1)
    assert mixed > 10


def test_mixing_is_a_function_of_seed_epoch_and_batch() -> None:
    def labels(seed: int, epoch: int) -> torch.Tensor:
        made = dataset(train=True, data_seed=seed, mix={"mixup": 1.0})
        return torch.stack([item["labels"] for item in made.__getitems__([(epoch, i) for i in range(10)])])

    assert torch.equal(labels(0, 0), labels(0, 0))
    assert not torch.equal(labels(0, 0), labels(0, 1))
    assert not torch.equal(labels(0, 0), labels(1, 0))


def test_both_kinds_of_mixing_take_turns() -> None:
    made = dataset(train=True, mix={"mixup": 1.0, "cutmix": 1.0})
    original = torch.stack([dataset()[index]["pixel_values"] for index in range(8)])
    pasted = []
    for epoch in range(20):
        batch = torch.stack([item["pixel_values"] for item in made.__getitems__([(epoch, i) for i in range(8)])])
        # CutMix leaves every pixel equal to one of the batch at that place; mixup makes new values.
        pasted.append(bool((batch.unsqueeze(1) == original.unsqueeze(0)).any(1).all()))
    assert 3 < sum(pasted) < 17


@pytest.mark.parametrize(
    ("mix", "match"),
    [({"mixup": -0.1}, r"mixup: -0\.1"), ({"cutmix": float("inf")}, "cutmix: inf"), ({"mix": 1.0}, "mixup, cutmix")],
)
def test_wrong_mixing_is_refused(mix: dict[str, float], match: str) -> None:
    with pytest.raises(InputError, match=match):
        dataset(train=True, mix=mix)


def test_zero_mixing_is_none() -> None:
    assert dataset(train=True, mix={"mixup": 0.0, "cutmix": 0.0})[3]["labels"] == 3


@pytest.mark.parametrize("key", [-1, 40, (0, 40)])
def test_an_index_outside_is_an_index_error(key: Any) -> None:
    with pytest.raises(IndexError, match=r"of 40"):
        dataset()[key]


def test_a_prepared_split_is_shared_by_all_datasets_that_read_it() -> None:
    split = images(size=17)
    assert dataset(images=split)._pixels is dataset(images=split, train=True)._pixels
    other = {**CONFIG, "input_size": (3, 10, 10)}
    assert dataset(images=split, data_config=other)[0]["pixel_values"].shape == (3, 10, 10)
