"""`hf-lskd export`: what leaves torch says what torch says, read back by the programs that will read it; and what is refused."""

import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_lskd.cli import main
from hf_lskd.errors import InputError
from hf_lskd.hub.export import check_loss, export_model
from hf_lskd.hub.export_beside import Beside, check_agreement, largest_difference
from hf_lskd.hub.export_source import open_source
from hf_lskd.hub.export_translation import translator_of, vocabulary
from hf_lskd.hub.latency import side_by_side
from hf_lskd.models import image_processor
from hf_lskd.models.sequence import load_trained_seq2seq
from hf_lskd.recipe import DecodingSpec
from tests.conftest import CONVNEXT, RESNET, VIT
from tests.families import ONE_HEAD
from tests.pages import blocks, run_snippet
from tests.test_translation import pairs
from tests.tiny_seq2seq import tiny_seq2seq, tokenizer
from tests.tiny_study import CLASSES, changed, dump, values, write_images

Capture = pytest.CaptureFixture[str]
MARIAN = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
          "encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, with a fraction of the time for latencies: nothing here depends on them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_lskd.hub.latency.BUDGET_S", 0.05)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def picture_page(images: Path) -> Path:
    recipe = changed(changed(values(images), "training.max_steps", 20), "projection", None)
    return dump(recipe, images / "recipe.yaml")


@pytest.fixture(scope="module")
def cell(picture_page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished teacher of six classes."""
    return trained(picture_page, tmp_path_factory)


@pytest.fixture(scope="module")
def pair_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name, count, seed in (("train", 300, 0), ("validation", 20, 1), ("test", 30, 2)):
        lines = "".join(f"{source}\t{target}\n" for source, target in pairs(count, seed))
        (folder / f"{name}.tsv").write_text(lines, encoding="utf-8")
    files = {name: str(folder / f"{name}.tsv") for name in ("train", "validation", "test")}
    model = {"model": "marian", "model_args": MARIAN}
    recipe = {
        "name": "toy",
        "task": "translation",
        "data": {
            "source": "text",
            "source_lang": "en",
            "target_lang": "de",
            **files,
            "vocab_size": 80,
            "max_length": 40,
        },
        "training": {"max_tokens": 200, "max_steps": 120, "learning_rate": 0.02, "eval_strategy": "no"},
        "teacher": model,
        "students": [model],
        "grid": {"label_smoothing": [0.0], "temperature": [1]},
        "eta": None,
        "decoding": {"beams": 1},
    }
    return dump(recipe, folder / "recipe.yaml")


@pytest.fixture(scope="module")
def translator(pair_page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished teacher of a toy language, whose embedding of <pad> has been trained as output too."""
    found = trained(pair_page, tmp_path_factory)
    assert json.loads((found / "record.json").read_text())["metrics"]["bleu"] > 5
    return found


def trained(page: Path, factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = factory.mktemp("cells") / "teacher-a0-s0"
    assert main(["train", str(page), "--output-dir", str(folder)]) == 0
    return folder


def export(model: Path, format: str, *options: str) -> dict[str, Any]:
    assert main(["export", str(model), "--format", format, "--output", "out", *options]) == 0
    return json.loads(Path("out/export.json").read_text(encoding="utf-8"))


def refused(capsys: Capture, *words: str) -> str:
    capsys.readouterr()
    code = main(["export", *words])
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert len(err.strip().splitlines()) == 1
    return err


# ---- Pictures


def read_idx(path: Path, dims: int) -> np.ndarray:
    content = path.read_bytes()
    shape = [int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, dims + 1)]
    return np.frombuffer(content[4 + 4 * dims :], np.uint8).reshape(shape)


def prepared(images: Path, how: dict[str, Any]) -> np.ndarray:
    """The validation pictures as preprocessing.json says, by numpy alone. (They have the model's size already.)"""
    pixels = read_idx(images / "t10k-images-idx3-ubyte", 3)
    assert how["crop"] == list(pixels.shape[1:])
    rgb = np.repeat(pixels[:, None], 3, axis=1) / np.float32(255)
    mean, std = (np.array(how[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return ((rgb - mean) / std).astype(np.float32)


def test_an_onnx_student_says_the_same_classes_in_a_program_of_its_own(
    cell: Path, images: Path, capsys: Capture
) -> None:
    """onnxruntime and numpy only, from the files' own words; truth is what the study kept of the cell."""
    import onnxruntime

    made = export(cell, "onnx")
    shown = capsys.readouterr().out
    how = json.loads(Path("out/preprocessing.json").read_text(encoding="utf-8"))
    assert how["output"]["classes"] == CLASSES
    session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
    pixels = prepared(images, how)
    logits = np.concatenate([session.run(None, {how["input"]["name"]: pixels[i:j]})[0] for i, j in ((0, 1), (1, 48))])
    kept = load_file(cell / "predictions.safetensors")
    assert logits.argmax(1).tolist() == kept["prediction"].tolist()
    sure = torch.from_numpy(logits).softmax(1).max(1).values
    torch.testing.assert_close(sure, kept["confidence"].to(sure.dtype), rtol=1e-4, atol=1e-5)
    recorded = json.loads((cell / "record.json").read_text())["metrics"]["top1"]
    assert made["metrics"]["top1"] == {"before": pytest.approx(recorded), "after": pytest.approx(recorded)}
    assert made["source"]["recorded"]["top1"] == recorded
    assert made["agreement"]["same_top1"] == made["agreement"]["examples"] == 48
    assert made["files"]["model.onnx"] == made["size_bytes"]["after"] == Path("out/model.onnx").stat().st_size
    assert made["latency_ms"]["before"]["runs"] == made["latency_ms"]["after"]["runs"] >= 10
    assert f"top1 {recorded:.2f} in torch, {recorded:.2f} exported" in shown
    snippet, _ = blocks("docs/export.md", "python")
    Path("out").rename("exported")
    picture = Image.fromarray(read_idx(images / "t10k-images-idx3-ubyte", 3)[7])
    run_snippet(snippet, "docs/export.md", {"picture": picture})
    assert capsys.readouterr().out.strip() == CLASSES[int(kept["prediction"][7])]


def test_a_torch_program_says_the_same_classes(cell: Path, images: Path) -> None:
    export(cell, "torch")
    how = json.loads(Path("out/preprocessing.json").read_text(encoding="utf-8"))
    program = torch.export.load("out/model.pt2").module()
    said = program(torch.from_numpy(prepared(images, how))).argmax(1)
    assert said.tolist() == load_file(cell / "predictions.safetensors")["prediction"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", ONE_HEAD)
def test_classifiers_of_transformers_become_onnx_from_their_folder(family: str, capsys: Capture) -> None:
    """Compared on noise, in batches of 64 and 3; how pictures are prepared comes from the processor beside them."""
    torch.manual_seed(0)
    ONE_HEAD[family]().save_pretrained("model")
    assert "does not say how its images are prepared" in refused(capsys, "model", "--format", "onnx")
    cfg = {"input_size": (3, 32, 32), "mean": (0.4,) * 3, "std": (0.3,) * 3, "crop_pct": 0.5}
    image_processor(cfg).save_pretrained("model")
    made = export(Path("model"), "onnx")
    assert (made["metrics"], made["agreement"]["examples"], made["agreement"]["same_top1"]) == ({}, 67, 67)
    how = json.loads(Path("out/preprocessing.json").read_text(encoding="utf-8"))
    assert (how["resize"]["shorter_side"], how["crop"], how["mean"]) == (64, [32, 32], [pytest.approx(0.4)] * 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "own"), [VIT, CONVNEXT, RESNET, ("mobilenetv2_035", {})], ids=lambda value: str(value)[:12]
)
def test_classifiers_of_timm_become_onnx_from_their_folder(name: str, own: dict[str, Any]) -> None:
    from hf_lskd.models import load_image_classifier

    torch.manual_seed(0)
    size = own.get("img_size", 32)
    cfg = {"input_size": (3, size, size), "mean": (0.4,) * 3, "std": (0.3,) * 3, "crop_pct": 1.0}
    model = load_image_classifier(name, class_names=CLASSES, pretrained=False, model_args=own, data_config=cfg)
    model.save_pretrained("model")
    made = export(Path("model"), "onnx")
    assert (made["agreement"]["examples"], made["agreement"]["same_top1"]) == (67, 67)


@pytest.mark.slow
def test_int8_of_a_vit_quantises_what_multiplies_and_replaces_an_earlier_export(cell: Path) -> None:
    import onnx

    export(cell, "torch")
    made = export(cell, "onnx", "--int8", "--max-loss", "10")
    assert sorted(made["files"]) == ["model.onnx", "preprocessing.json"]
    assert not Path("out/model.pt2").exists()
    assert "MatMulInteger" in [node.op_type for node in onnx.load("out/model.onnx").graph.node]
    assert made["metrics"]["top1"]["after"] >= made["metrics"]["top1"]["before"] - 10


@pytest.mark.slow
def test_int8_of_a_convolutional_model_takes_its_ranges_from_training_pictures(picture_page: Path) -> None:
    """A saved model without a record, judged on a recipe's data. Every convolution's input is quantised, 8 bits a weight."""
    import onnx

    from hf_lskd.models import load_image_classifier

    torch.manual_seed(0)
    name, own = RESNET
    cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0}
    load_image_classifier(name, class_names=CLASSES, pretrained=False, model_args=own, data_config=cfg).save_pretrained(
        "model"
    )
    with pytest.raises(InputError, match="--int8 for a model without data"):
        export_model(Path("model"), "onnx", int8=True)
    made = export(Path("model"), "onnx", "--int8", "--data", str(picture_page), "--max-loss", "100")
    graph = onnx.load("out/model.onnx").graph
    fed = {output: node.op_type for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 5
    assert {fed[node.input[i]] for node in convolutions for i in (0, 1)} == {"DequantizeLinear"}
    how = json.loads(Path("out/preprocessing.json").read_text(encoding="utf-8"))
    assert (how["mean"], how["std"]) == ([0.5] * 3, [0.25] * 3)
    assert made["source"]["record_sha256"] is None
    assert made["agreement"]["largest_difference"] < 0.2 * made["agreement"]["largest_logit"]


def test_an_int8_export_that_costs_too_much_is_refused() -> None:
    metrics = {"top1": {"before": 90.0, "after": 88.9}}
    check_loss(metrics, 1.2, int8=True)
    check_loss({"top1": {"before": 90.0, "after": 91.5}}, 0.0, int8=True)
    with pytest.raises(InputError, match=r"top1 88\.90 where torch has 90\.00"):
        check_loss(metrics, 1.0, int8=True)


def test_what_differs_from_torch_is_not_left_behind(
    cell: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No float export is exact to the last bit of a ViT; a tolerance that asks for that must end it."""
    monkeypatch.setattr("hf_lskd.hub.export_images.TOLERANCE", -1.0)
    said = refused(capsys, str(cell), "--format", "torch", "--output", "wrong")
    assert "differs from torch" in said
    assert "It was not kept" in said
    assert list(tmp_path.iterdir()) == []


# ---- Translation


def test_a_ctranslate2_student_translates_as_the_study_did(translator: Path, capsys: Capture) -> None:
    """CTranslate2 and tokenizers only; truth is the file of translations that the cell keeps."""
    import ctranslate2
    from tokenizers import Tokenizer

    made = export(translator, "ctranslate2")
    kept = [json.loads(line) for line in (translator / "translations.jsonl").read_text(encoding="utf-8").splitlines()]
    tokens, model = Tokenizer.from_file("out/tokenizer.json"), ctranslate2.Translator("out", compute_type="float32")
    decoding = {key: value for key, value in made["decoding"].items() if key != "call"}
    found = model.translate_batch([tokens.encode(row["source"]).tokens for row in kept], **decoding)
    texts = [tokens.decode([tokens.token_to_id(token) for token in row.hypotheses[0]]).strip() for row in found]
    assert texts == [row["translation"] for row in kept]
    recorded = json.loads((translator / "record.json").read_text())
    assert made["metrics"]["bleu"] == {"before": pytest.approx(recorded["metrics"]["bleu"])} | {
        "after": pytest.approx(recorded["metrics"]["bleu"])
    }
    assert made["bleu_signature"] == recorded["translation"]["bleu_signature"]
    assert made["agreement"]["same_translations"] == 30
    capsys.readouterr()
    shutil.copytree("out", "translator")
    run_snippet(blocks("docs/export.md", "python")[1], "docs/export.md", {"sentence": kept[3]["source"]})
    assert capsys.readouterr().out.strip() == kept[3]["translation"]
    small = export(translator, "ctranslate2", "--int8", "--max-loss", "100")  # in the place of the first
    assert small["compute_type"] == "int8"
    assert small["size_bytes"]["after"] < 0.75 * made["size_bytes"]["after"]
    assert (
        small["metrics"]["bleu"]["before"] == made["metrics"]["bleu"]["before"]
    )  # quantising left torch's model alone


def test_ctranslate2s_own_marian_loader_is_seen_to_be_another_model(translator: Path) -> None:
    """It drops the row of <pad> and starts from zeros; the check that guards an export must find that."""
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    folder = translator / "model"
    TransformersConverter(str(folder)).convert("stock")
    model = load_trained_seq2seq(str(folder)).eval()
    reader = AutoTokenizer.from_pretrained(folder)
    words = vocabulary(reader, model.config.vocab_size)
    assert bool(model.get_input_embeddings().weight[reader.pad_token_id].any())
    beside = Beside.of(open_source(folder), model, reader, words, translator_of(Path("stock"), "float32"))
    with pytest.raises(InputError, match="differs from torch"):
        check_agreement(largest_difference(beside))


def test_pad_may_be_any_id_and_without_data_random_tokens_are_compared() -> None:
    """<pad> is 1 of 24 here, and starts the decoder; the embedding has two rows more than the tokenizer has tokens."""
    model = tiny_seq2seq("marian")
    with torch.no_grad():
        model.get_input_embeddings().weight[1].normal_()  # as training leaves it: it is an output too
    model.save_pretrained("model")
    tokenizer(22).save_pretrained("model")
    made = export(Path("model"), "ctranslate2")
    assert made["metrics"] == {}
    assert made["agreement"]["on"].startswith("random tokens")
    assert made["agreement"]["largest_difference"] < 1e-4
    assert len(json.loads(Path("out/shared_vocabulary.json").read_text())) == 24


def test_words_that_generation_never_says_are_not_said_there() -> None:
    model, reader = tiny_seq2seq("marian"), tokenizer()
    model.save_pretrained("model")
    reader.save_pretrained("model")
    export(Path("model"), "ctranslate2")
    words = vocabulary(reader, model.config.vocab_size)
    beside = Beside.of(open_source(Path("model")), model.eval(), reader, words, translator_of(Path("out"), "float32"))
    beside = replace(beside, decoding=DecodingSpec(beams=1, max_length=12), texts=beside.texts[:8])
    free = beside.by_torch(beside.texts)
    assert beside.exported(beside.texts) == free
    often = Counter(" ".join(free).split()).most_common(1)[0][0]
    model.generation_config.bad_words_ids = [[reader.convert_tokens_to_ids(often)]]
    assert often not in " ".join(beside.exported(beside.texts)).split()
    assert beside.exported(beside.texts) == beside.by_torch(beside.texts)


# ---- Bad input


@pytest.mark.parametrize(
    ("family", "message"),
    [("fsmt", "fsmt: CTranslate2 has no loader"), ("bart", "bart: its conversion is not checked")],
)
def test_other_translation_models_are_refused_by_name(family: str, message: str, capsys: Capture) -> None:
    tiny_seq2seq(family).save_pretrained("model")
    tokenizer().save_pretrained("model")
    assert message in refused(capsys, "model", "--format", "ctranslate2")


def damaged(name: str, cell: Path, translator: Path) -> tuple[str, ...]:
    """Arguments of an export that has to be refused."""
    if name in ("no tokenizer", "words missing"):
        shutil.copytree(translator / "model", "model")
        for file in Path("model").glob("tokenizer*"):
            file.unlink()
        if name == "words missing":
            tokenizer(900).save_pretrained("model")
        return "model", "--format", "ctranslate2"
    if name in ("no weights", "cut weights", "no config"):
        shutil.copytree(cell / "model", "model")
        weights = Path("model/model.safetensors")
        if name == "cut weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        else:
            (weights if name == "no weights" else Path("model/config.json")).unlink()
        return "model", "--format", "onnx"
    Path("file").write_text("")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("")
    return {
        "nowhere": ("nowhere", "--format", "onnx"),
        "file": ("file", "--format", "onnx"),
        "to a file": (str(cell), "--format", "onnx", "--output", "file"),
        "into a file": (str(cell), "--format", "onnx", "--output", "file/out"),
        "to a full folder": (str(cell), "--format", "onnx", "--output", "full"),
        "over the model": (str(cell), "--format", "onnx", "--output", str(cell)),
        "pictures to ctranslate2": (str(cell), "--format", "ctranslate2"),
        "text to onnx": (str(translator), "--format", "onnx"),
        "text to torch": (str(translator), "--format", "torch"),
        "int8 of torch": (str(cell), "--format", "torch", "--int8"),
        "loss": (str(cell), "--format", "onnx", "--int8", "--max-loss", "-1"),
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere does not exist"),
        ("file", "file is a file"),
        ("no config", "no config.json"),
        ("no weights", "has no weights"),
        ("cut weights", "cannot be loaded"),
        ("no tokenizer", "has no tokenizer"),
        ("words missing", "token rows for a tokenizer of 900"),
        ("to a file", "is a file"),
        ("into a file", "cannot be written"),
        ("to a full folder", "holds mine.txt"),
        ("over the model", "holds the model itself"),
        ("pictures to ctranslate2", "no translation model"),
        ("text to onnx", "the search that makes them is not in it"),
        ("text to torch", "ctranslate2, for Marian"),
        ("int8 of torch", "--int8 with onnx or ctranslate2"),
        ("loss", "--max-loss -1"),
    ],
)
def test_bad_input_is_one_message(name: str, message: str, cell: Path, translator: Path, capsys: Capture) -> None:
    assert message in refused(capsys, *damaged(name, cell, translator))
    assert not Path("exports").exists() or list(Path("exports").iterdir()) == []


def test_an_unknown_format_and_data_of_another_task_are_named(cell: Path, pair_page: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", str(cell), "--format", "onxx"])
    assert end.value.code == 2
    assert "Did you mean 'onnx'" in capsys.readouterr().err
    said = refused(capsys, str(cell), "--format", "onnx", "--data", str(pair_page))
    assert "is a recipe of translation" in said


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("ctranslate2", "ctranslate2")])
def test_a_missing_package_is_named_with_its_extra(
    format: str, package: str, cell: Path, translator: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = refused(capsys, str(cell if format == "onnx" else translator), "--format", format)
    assert package in said
    assert "pip install 'hf_lskd[export]'" in said


def test_a_model_that_cannot_be_traced_is_refused() -> None:
    from hf_lskd.hub.export_images import traced

    class Branches(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return pixel_values if float(pixel_values.sum()) > 0 else -pixel_values

    with pytest.raises(InputError, match="Branches cannot be traced"):
        traced(Branches(), torch.ones(2, 3))


# ---- Latency


def test_both_sides_are_timed_in_turns_on_the_same_work() -> None:
    calls: list[tuple[str, int]] = []
    found = side_by_side(lambda n: calls.append(("before", n)), lambda n: calls.append(("after", n)), most=12)
    assert found["before"]["runs"] == found["after"]["runs"] == 12
    assert [name for name, _ in calls] == ["before", "after"] * (12 + 3)
    assert all(one[1] == other[1] for one, other in zip(calls[::2], calls[1::2]))
    assert [n for _, n in calls[6::2]] == list(range(12))
    for side in ("before", "after"):
        assert found[side]["q1"] <= found[side]["median"] <= found[side]["q3"]
