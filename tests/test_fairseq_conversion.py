"""Models that fairseq trained and saved, beside what we make of them: token ids, logits, beam search, binary text.

fairseq lives in an environment of its own, which `make test-slow` builds; HF_LSKD_FAIRSEQ_PYTHON names its Python.
"""

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from hf_lskd.data.fairseq_binary import load_fairseq, read_side
from hf_lskd.generation import translate_corpus
from hf_lskd.hub.from_fairseq import convert_fairseq
from hf_lskd.models.sequence import load_trained_seq2seq

PYTHON = os.environ.get("HF_LSKD_FAIRSEQ_PYTHON", "")
SENTENCES, LENGTH = 100, 60
SHAPE = ["--arch", "transformer_iwslt_de_en"]
for side in ("encoder", "decoder"):
    SHAPE += [f"--{side}-embed-dim", "32", f"--{side}-ffn-embed-dim", "64", f"--{side}-layers", "2"]
    SHAPE += [f"--{side}-attention-heads", "4"]
PRE = ["--share-all-embeddings", "--encoder-normalize-before", "--decoder-normalize-before"]
VARIANTS = {
    "post, all shared": {"data": "joined", "args": ["--share-all-embeddings"], "kind": "FSMT"},
    "post, output shared": {"data": "apart", "args": ["--share-decoder-input-output-embed"], "kind": "FSMT"},
    "post, nothing shared, gelu": {"data": "apart", "args": ["--activation-fn", "gelu"], "kind": "FSMT"},
    "post, no scale": {"data": "joined", "args": ["--no-scale-embedding"], "kind": "FSMT"},
    "pre, all shared": {"data": "joined", "args": PRE, "kind": "M2M100"},
    "pre, gelu_accurate": {"data": "joined", "args": [*PRE, "--activation-fn", "gelu_accurate"], "kind": "M2M100"},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="fairseq needs an environment of its own: `make test-slow` builds it"),
]


def pairs(count: int, draw: random.Random) -> list[tuple[str, str]]:
    """Sentences of made-up words, translated word by word: what a tiny model learns in a few hundred steps."""
    syllables = ["ba", "ke", "lo", "mi", "nu", "sa", "te", "ri"]
    words = sorted({a + b + end for a in syllables for b in syllables[::3] for end in ("", "n", "s")})
    sources = [" ".join(draw.choices(words, k=draw.randint(2, 6))) for _ in range(count)]
    return [(line, " ".join(f"{word[::-1]}a" for word in line.split())) for line in sources]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which fairseq has trained every variant and written down what it makes of the validation text."""
    folder = tmp_path_factory.mktemp("oracle")
    draw = random.Random(0)
    held_out = [*pairs(SENTENCES - 1, draw), ("baξe lon .", "abal")]  # letters that training has not
    for name, rows in (("train", pairs(800, draw)), ("valid", held_out)):
        for index, language in enumerate(("en", "de")):
            (folder / f"{name}.{language}").write_text("".join(f"{row[index]}\n" for row in rows))
    settings = {
        "merges": 60, "updates": 300, "rate": 5e-3, "max_length": LENGTH, "shape": SHAPE,
        "variants": {name: {"data": one["data"], "args": one["args"]} for name, one in VARIANTS.items()},
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    script = Path(__file__).with_name("fairseq_conversion_run.py")
    subprocess.run([PYTHON, "-W", "ignore", str(script), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module", params=VARIANTS)
def converted(request: Any, oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict, Path]:
    """(our model, its tokenizer, what fairseq says, the folder) of one variant."""
    name = request.param
    source, target = oracle / name / "checkpoint_last.pt", tmp_path_factory.mktemp("ours") / "model"
    found = convert_fairseq(source, target, data_bin=oracle / VARIANTS[name]["data"], bpe_codes=oracle / "codes")
    assert found.architecture.endswith(VARIANTS[name]["kind"])
    said = torch.load(oracle / name / "oracle.pt", weights_only=True)
    return load_trained_seq2seq(str(target)).eval(), AutoTokenizer.from_pretrained(target), said, oracle


def test_token_ids_are_fairseqs(converted: tuple[Any, Any, dict, Path]) -> None:
    _, tokenizer, said, folder = converted
    lines = (folder / "valid.en").read_text().splitlines()
    assert tokenizer(lines)["input_ids"] == [row.tolist() for row in said["sources"]]
    assert len(lines) == SENTENCES
    assert 3 in said["sources"][-1]


@torch.no_grad()
def test_logits_are_fairseqs(converted: tuple[Any, Any, dict, Path]) -> None:
    model, _, said, _ = converted
    largest = 0.0
    for source, target, wanted in zip(said["sources"], said["targets"], said["logits"]):
        before = torch.cat([torch.tensor([2]), target[:-1]])[None]
        logits = model(input_ids=source[None], decoder_input_ids=before, use_cache=False).logits[0]
        largest = max(largest, float((logits - wanted).abs().max()))
    unit = max(float(one.abs().max()) for one in said["logits"])
    print(f"\nlargest difference of logits {largest:.1e}, largest logit {unit:.1f}")
    assert largest < 1e-4


def test_translations_of_five_beams_are_fairseqs(converted: tuple[Any, Any, dict, Path]) -> None:
    """But for those that had not ended at the largest length, where fairseq puts an end and transformers none."""
    model, tokenizer, said, folder = converted
    lines = (folder / "valid.en").read_text().splitlines()
    made = translate_corpus(model, tokenizer, lines, beams=5, max_length=LENGTH)
    ended = [i for i, one in enumerate(made) if not one.cut]
    same = [i for i in ended if made[i].text == said["texts"][i]]
    off = max(abs(made[i].score - said["scores"][i]) for i in ended)
    print(
        f"\n{len(same)} of {SENTENCES} translations equal, {SENTENCES - len(ended)} cut; scores differ by {off:.1e} at most"
    )
    assert len(ended) >= SENTENCES - 2
    assert same == ended
    assert off < 1e-4
    targets = (folder / "valid.de").read_text().splitlines()
    assert sum(text in targets for text in said["texts"]) > SENTENCES / 4  # it learnt something to say


@pytest.mark.parametrize("name", ["joined", "apart", "cached"])
def test_binary_text_is_what_fairseq_reads(name: str, oracle: Path) -> None:
    for place, rows in json.loads((oracle / "read.json").read_text())[name].items():
        split, language = place.split(".")
        assert read_side(oracle / name / f"{split}.en-de.{language}").rows() == rows
    data = {
        "path": str(oracle / name),
        "source_lang": "en",
        "target_lang": "de",
        "subwords": "subword_nmt",
        "tokenised": False,
    }
    found = load_fairseq(data)
    assert list(found.train.sources) == (oracle / "train.en").read_text().splitlines()
    assert list(found.train.targets) == (oracle / "train.de").read_text().splitlines()
