"""fairseq's checkpoints without fairseq: the same logits as a slow forward pass, the same token ids, and every refusal by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_lskd.cli import main
from hf_lskd.data.fairseq_dictionary import read_dictionary
from hf_lskd.errors import InputError
from hf_lskd.hub.fairseq_tokenizer import read_codes
from hf_lskd.hub.from_fairseq import convert_fairseq
from hf_lskd.models.weights_file import read_checkpoint
from tests.tiny_fairseq import CODES, TOKENS, Slow, checkpoint, dictionaries, settings, state

PRE = {"encoder_normalize_before": True, "decoder_normalize_before": True}
NONE = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}
VARIANTS: dict[str, tuple[str, dict[str, Any], tuple[int, int], str]] = {
    "all shared": ("FSMT", {}, (16, 16), "cfg"),
    "output shared": ("FSMT", {"share_all_embeddings": False}, (16, 14), "args"),
    "nothing shared": ("FSMT", {**NONE, "activation_fn": "gelu"}, (16, 14), "hydra"),
    "no scale": ("FSMT", {"no_scale_embedding": True, "encoder_layers": 1}, (16, 16), "args"),
    "norms before": ("M2M100", PRE, (16, 16), "cfg"),
    "norms before, gelu": ("M2M100", {**PRE, "activation_fn": "gelu", "no_scale_embedding": True}, (16, 16), "hydra"),
}


def given(folder: Path, rows: tuple[int, int] = (16, 16), form: str = "cfg", **other: Any) -> Path:
    dictionaries(folder, TOKENS, TOKENS[: rows[1] - 4])
    (folder / "codes").write_text(CODES)
    return checkpoint(folder, rows, form, **other)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_fairseqs_definition(name: str, tmp_path: Path) -> None:
    kind, other, rows, form = VARIANTS[name]
    source = given(tmp_path / "theirs", rows, form, **other)
    found = convert_fairseq(source, tmp_path / "ours", bpe_codes=tmp_path / "theirs" / "codes")
    assert found.architecture == f"transformer_iwslt_de_en as {kind}"
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours").eval()
    assert type(model).__name__.startswith(kind)
    made = settings(**other)
    slow = Slow(state(made, rows), made)
    sentences = [([5, 9, 4, 15, 2], [2, 7, 4, 9, 6]), ([8, 2], [2, 11, 5])]
    longest = max(len(source) for source, _ in sentences)
    for tokens, before in sentences:
        wanted = slow.logits(tokens, before)
        padded = torch.tensor([tokens + [1] * (longest - len(tokens))])
        with torch.no_grad():
            logits = model(padded, padded.ne(1).long(), torch.tensor([before]), use_cache=False).logits[0]
        assert logits.shape == wanted.shape == (len(before), rows[1])
        torch.testing.assert_close(logits.double(), wanted, rtol=1e-5, atol=1e-5)


def by_hand(text: str) -> list[int]:
    """Ids of pieces as subword-nmt writes them, looked up in the dictionary."""
    known = ["<s>", "<pad>", "</s>", "<unk>", *TOKENS]
    return [*(known.index(piece) if piece in known else 3 for piece in text.split()), 2]


@pytest.mark.parametrize(
    ("raw", "pieces"),
    [
        ("lower", "lower"),
        ("low", "lo@@ w"),
        ("we", "we"),
        ("er", "er"),
        ("widest", "wide@@ st"),
        ("lower, wider", "lower , wi@@ d@@ er"),  # the earliest merge first, and pieces that the dictionary has not
        ("we's", "we &apos;s"),  # escaped, as Moses does
        ("er-we", "er @-@ we"),  # as FSMTTokenizer does, and says where the dictionary has no @-@
        ("q", "q"),
        ("LOWER", "lower"),
    ],
)
def test_the_tokenizer_has_the_dictionarys_ids(raw: str, pieces: str, tmp_path: Path) -> None:
    source = given(tmp_path / "theirs", **PRE)
    convert_fairseq(source, tmp_path / "ours", bpe_codes=tmp_path / "theirs" / "codes", lower_case=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer(raw)["input_ids"] == by_hand(pieces)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 3)


def test_what_is_said_becomes_words_again(tmp_path: Path) -> None:
    source = given(tmp_path / "theirs")
    convert_fairseq(source, tmp_path / "raw", bpe_codes=tmp_path / "theirs" / "codes")
    convert_fairseq(source, tmp_path / "cut")
    ids = by_hand("lo@@ w , wide@@ st er")
    decoded = [
        AutoTokenizer.from_pretrained(tmp_path / name).decode(ids, skip_special_tokens=True) for name in ("raw", "cut")
    ]
    assert decoded == ["low, widest er", "low , widest er"]


def test_a_dictionary_of_words_with_hyphens_is_remarked(tmp_path: Path) -> None:
    source = given(tmp_path / "theirs")
    dictionaries(tmp_path / "theirs", *[tuple(token.replace("@-@", "x-y") for token in TOKENS)] * 2)
    found = convert_fairseq(source, tmp_path / "ours", bpe_codes=tmp_path / "theirs" / "codes")
    assert any("splits words at hyphens" in remark for remark in found.remarks)


def test_without_codes_the_text_comes_cut(tmp_path: Path) -> None:
    found = convert_fairseq(given(tmp_path / "theirs"), tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert not any("hyphens" in remark for remark in found.remarks)
    text = "lo@@ w wide@@ st , &apos;s @-@ nowhere"
    assert tokenizer(text)["input_ids"] == by_hand(text)
    assert any("cut already" in remark for remark in found.remarks)
    with pytest.raises(InputError, match="two dictionaries and no codes"):
        convert_fairseq(given(tmp_path / "two", (16, 14), **NONE), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_converted_folder_translates_from_the_command_line(tmp_path: Path, capsys: Any) -> None:
    given(tmp_path / "theirs")
    words = ["convert", "fairseq", str(tmp_path / "theirs"), str(tmp_path / "ours")]
    assert main([*words, "--bpe-codes", str(tmp_path / "theirs" / "codes")]) == 0
    said = capsys.readouterr().out
    assert "each with the dictionary's id" in said
    assert "α/(K−1)" in said
    (tmp_path / "in.txt").write_text("lower, we\nwidest\n")
    words = ["translate", str(tmp_path / "ours"), "--input", str(tmp_path / "in.txt"), "--output"]
    assert main([*words, str(tmp_path / "out.tsv"), "--max-length", "5"]) == 0
    assert len((tmp_path / "out.tsv").read_text().splitlines()) == 2
    record = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert record["sha256"].keys() == {"model.pt", "dict.en.txt", "dict.de.txt", "codes"}


def refusal(source: Path, target: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        convert_fairseq(source, target, **options)
    assert not target.exists()
    assert not list(target.parent.glob(f".{target.name}*"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"arch": "fconv_iwslt_de_en"}, "fconv_iwslt_de_en"),
        ({"arch": "transformer_lm"}, "transformer_lm"),
        ({"encoder_normalize_before": True}, "one side normalises before"),
        ({**PRE, "share_all_embeddings": False}, "does not share all embeddings"),
        ({"decoder_learned_pos": True}, "positions are learned"),
        ({"no_token_positional_embeddings": True}, "no positions"),
        ({"layernorm_embedding": True}, "normalises its embeddings"),
        ({"adaptive_softmax_cutoff": [8]}, "softmax is adaptive"),
        ({"adaptive_input": True}, "embeddings are adaptive"),
        ({"cross_self_attention": True}, "source and target at once"),
        ({"no_cross_attention": True}, "does not see the source"),
        ({"decoder_layers_to_keep": "0,1"}, "decoder is pruned"),
        ({"quant_noise_pq": 0.1}, "quantisation noise"),
        ({"decoder_output_dim": 4}, "decoder_output_dim is 4"),
        ({"activation_fn": "linear"}, "activation is linear"),
        ({"encoder_layers": "six"}, "encoder_layers is 'six'"),
    ],
)
def test_other_variants_are_refused_by_name(other: dict[str, Any], why: str, tmp_path: Path) -> None:
    dictionaries(tmp_path)
    made = {**settings(), **other}
    torch.save({"model": state(settings()), "cfg": {"model": made, "task": {}}}, tmp_path / "model.pt")
    assert why in refusal(tmp_path, tmp_path / "ours", languages=("en", "de"))


def test_weights_and_dictionaries_that_do_not_fit_are_named(tmp_path: Path) -> None:
    source = given(tmp_path / "theirs")
    whole = read_checkpoint(source)

    def of(**changed: Any) -> str:
        torch.save({**whole, **changed}, tmp_path / "theirs" / "changed.pt")
        return refusal(tmp_path / "theirs" / "changed.pt", tmp_path / "ours")

    weights = whole["model"]
    name = "decoder.layers.1.encoder_attn.q_proj.weight"
    assert f"1 missing: {name}" in of(model={key: value for key, value in weights.items() if key != name})
    assert "1 unknown: decoder.lost.bias" in of(model={**weights, "decoder.lost.bias": torch.zeros(1)})
    assert f"{name} [8, 7] where [8, 8] belongs" in of(model={**weights, name: torch.zeros(8, 7)})
    assert "embeddings that differ" in of(model={**weights, "decoder.embed_tokens.weight": torch.ones(16, 8)})
    assert "NaN or infinity" in of(model={**weights, "decoder.layers.0.fc1.bias": torch.full((12,), torch.nan)})
    assert "no settings" in of(cfg=None)
    assert "languages" in of(cfg={"model": settings()})
    traversal = {"model": settings(), "task": {"source_lang": "en", "target_lang": "../../etc/de"}}
    assert "language '../../etc/de'" in of(cfg=traversal)
    (tmp_path / "theirs" / "dict.de.txt").write_text("we 1\n")
    message = refusal(source, tmp_path / "ours")
    assert "makes 5 tokens" in message
    assert "16 rows" in message
    assert "is not there" in refusal(source, tmp_path / "ours", data_bin=tmp_path)
    assert "has no checkpoint" in refusal(tmp_path, tmp_path / "ours")
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    assert "cannot be read" in refusal(source, tmp_path / "ours")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1\nb\n", ":2: 'b'"),
        ("a 1\nb two\n", ":2: 'b two'"),
        ("a 1\n\nb 1\n", ":2: ''"),
        ("a 1\na 2\n", "'a' a second time"),
        ("<pad> 2 #fairseq:overwrite\n", "'<pad>' a second time"),
    ],
)
def test_a_broken_dictionary_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dict.en.txt").write_text(text)
    with pytest.raises(InputError) as caught:
        read_dictionary(tmp_path / "dict.en.txt")
    assert message in str(caught.value)


def test_codes_of_fastbpe_and_of_subword_nmt_are_read_alike(tmp_path: Path) -> None:
    merges = [("l", "o"), ("e", "r</w>"), ("lo", "w")]
    for name, text in (
        ("subword", "#version: 0.2\nl o\ne r</w>\nlo w\ne r</w>\n"),
        ("fast", "l o 93\ne r</w> 12\nlo w 3\n"),
    ):
        (tmp_path / name).write_text(text)
        assert read_codes(tmp_path / name) == merges


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("codes", "#version: 0.1\nl o\n", "version 0.1"),
        ("codes", "l o\nr </w>\n", "line 2"),
        ("codes", "#version: 0.2\nl o\nlow\n", ":3: 'low'"),
        ("codes", "#version: 0.2\nl o w\n", ":2: 'l o w'"),
        ("spm.model", "x", "sentencepiece"),
    ],
)
def test_other_codes_are_refused_by_name(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_codes(tmp_path / name)
    assert message in str(caught.value)
