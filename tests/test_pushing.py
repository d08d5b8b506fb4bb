"""The cards that our trainers write, without a Hub."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_lskd import DistillationTrainer
from hf_lskd.card import render
from hf_lskd.card_licences import LICENSE
from hf_lskd.errors import InputError
from hf_lskd.models.files import SHARED, shared_files
from hf_lskd.pushing import UPLOADED
from tests import tiny_seq2seq
from tests.conftest import Examples, tiny
from tests.hub_metadata import metadata_errors


def written(folder: Path) -> tuple[ModelCard, dict[str, Any]]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    record = json.loads((folder / "record.json").read_text())
    assert text == render(record)
    assert metadata_errors(text) == ([], [])
    return ModelCard(text), record


def test_a_teachers_card_says_its_smoothing_and_what_its_evaluation_said(arguments: Any, tmp_path: Path) -> None:
    args = arguments(label_smoothing_factor=0.1, max_steps=2)
    trainer = DistillationTrainer(tiny(), args, train_dataset=Examples(16), eval_dataset=Examples(10, seed=1))
    trainer.train()
    measured = trainer.evaluate()
    trainer.create_model_card(language="en", license="mit", tags="small", model_name="a name")
    card, record = written(Path(args.output_dir))
    assert record["metrics"]["nll"] == pytest.approx(measured["eval_nll"])
    assert (record["name"], record["role"], record["label_smoothing"]) == ("a name", "teacher", 0.1)
    assert f"{measured['eval_nll']:.3f} nats" in card.text
    assert "α = 0.1" in card.text
    assert (card.data.license, "small" in card.data.tags) == ("mit", True)


def test_a_licence_that_the_hub_does_not_know_is_refused_and_one_of_another_kind_goes_with_its_text(
    arguments: Any, tmp_path: Path
) -> None:
    args = arguments()
    trainer = DistillationTrainer(tiny(), args, train_dataset=Examples(8))
    newer = r"^license New Licence 2\.0\. .*For one that is newer, or not there: license other, license_name new-licence-2\.0"
    for make in (trainer.create_model_card, trainer.push_to_hub):
        with pytest.raises(InputError, match=r"^license MIT\. Allowed: .*Did you mean 'mit'"):
            make(license="MIT")
        with pytest.raises(InputError, match=newer):
            make(license="New Licence 2.0")
        with pytest.raises(InputError, match=r"^license other without license_name"):
            make(license="other")
    assert not (Path(args.output_dir) / "README.md").exists()
    text = tmp_path / "terms.txt"
    text.write_text("Do as you like.")
    trainer.create_model_card(license="other", license_name="new-licence-2.0", license_link=str(text))
    card, _ = written(Path(args.output_dir))
    assert (card.data.license, card.data.license_name) == ("other", "new-licence-2.0")
    assert card.data.license_link == LICENSE
    assert (Path(args.output_dir) / LICENSE).read_text() == "Do as you like."
    assert LICENSE in UPLOADED
    own = Path(args.output_dir) / LICENSE  # and once more, of the file that lies beside the card
    trainer.create_model_card(license="other", license_name="new-licence-2.0", license_link=str(own))
    assert written(Path(args.output_dir))[0].data.license_link == LICENSE
    assert own.read_text() == "Do as you like."


def test_a_translation_students_card_names_its_library_and_task(tmp_path: Path) -> None:
    args = tiny_seq2seq.arguments(tmp_path / "pairs")
    trainer = tiny_seq2seq.trainer(tiny_seq2seq.tiny_seq2seq(), args, teacher_model=tiny_seq2seq.tiny_seq2seq(seed=1))
    trainer.create_model_card()
    card, record = written(tmp_path / "pairs")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "translation")
    assert record["role"] == "student"
    assert "AutoModelForSeq2SeqLM.from_pretrained" in card.text


def test_a_finished_cells_own_record_makes_the_card(arguments: Any) -> None:
    args = arguments()
    folder = Path(args.output_dir)
    folder.mkdir(parents=True)
    own = {"format": 1, "status": "complete", "role": "teacher", "name": "teacher-a0.3-s0", "label_smoothing": 0.3, "signature": "x",
           "metrics": {"top1": 12.0}}  # fmt: skip
    (folder / "record.json").write_text(json.dumps(own))
    DistillationTrainer(tiny(), args, train_dataset=Examples(8)).create_model_card()
    card, record = written(folder)
    assert record == own
    assert "α = 0.3" in card.text


def test_what_is_shared_of_a_folder_is_no_pickle(arguments: Any) -> None:
    args = arguments(hub_token="hf_" + "t" * 34)
    trainer = DistillationTrainer(tiny(), args, train_dataset=Examples(8))
    trainer.save_model()
    folder = Path(args.output_dir)
    assert (folder / "training_args.bin").is_file()  # the stock trainer's, which stays at home
    assert {path.name for path in shared_files(folder)} == {"config.json", "model.safetensors"}
    assert b"t" * 34 not in (folder / "training_args.bin").read_bytes()
    assert args.hub_token == "hf_" + "t" * 34
    assert not any(
        Path(name).match(pattern)
        for name in ("training_args.bin", "optimizer.pt", "rng_state.pth")
        for pattern in SHARED
    )
