"""Translating a corpus: known answers, scores, files, and going on after a kill to the same bytes."""

import copy
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lskd.errors import InputError
from hf_lskd.generation import Translation, read_sources, translate_corpus
from hf_lskd.translation_files import write_translations
from tests.tiny_seq2seq import FAMILIES, VOCABULARY, tiny_seq2seq

ROOT = Path(__file__).parents[1]
WORDS = ("ab", "cde", "fg", "h", "ij", "klm")
SENTENCES = ["ab cde fg", "h", "klm ij", "ij h ab klm", "cde", "fg fg ab", "klm klm", "h ij cde fg", "ab", "ij ab h"]
SMALL = {"beams": 2, "max_tokens": 20}  # two or so sentences a batch
KILLED = """
import sys, time
from pathlib import Path
from transformers import AutoTokenizer, MarianMTModel
from hf_lskd.generation import translate_corpus
from tests.test_generation import SENTENCES, SMALL

def wait_for_the_end(done, total):
    print(done, flush=True)
    if done > len(SENTENCES) // 2:
        time.sleep(600)

model = MarianMTModel.from_pretrained(sys.argv[1])
translate_corpus(model, AutoTokenizer.from_pretrained(sys.argv[1]), SENTENCES, Path(sys.argv[2]), **SMALL,
                 on_batch=wait_for_the_end)
"""


def tiny_tokenizer(**special: str) -> Any:
    """Byte pairs of a few words; `special` are the tokens it knows the role of."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


def tiny_marian(positions: int = 40, **more: Any) -> Any:
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    return MarianMTModel(
        MarianConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
                     encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=positions,
                     pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout=0.0, init_std=0.3,
                     **{"vocab_size": VOCABULARY, "forced_eos_token_id": None, **more})
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer(pad_token="<pad>", eos_token="</s>")


@pytest.fixture(scope="module")
def copier(tokenizer: Any) -> Any:
    """A model that has learnt to say what it hears, of the ten sentences."""
    model = tiny_marian()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"].eq(0), -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(250):
        loss = model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    return model.eval()


@pytest.fixture(scope="module")
def endless() -> Any:
    """A model that never ends: its end token is ruled out."""
    model = tiny_marian()
    model.final_logits_bias[0, 1] = -1e4
    return model


def log_probability(model: Any, tokenizer: Any, source: str, text: str) -> tuple[float, int]:
    """Sum of the log-probabilities of the translation's tokens under teacher forcing, and their number, the end included."""
    ids = tokenizer([source], return_tensors="pt")["input_ids"]
    target = tokenizer([text], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids, labels=target).logits
    chosen = logits.log_softmax(-1).gather(-1, target.unsqueeze(-1))
    return float(chosen.sum()), target.shape[1]


# ---- What is said


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("max_tokens", [1, 20, 4096])
def test_a_model_that_copies_gives_the_sentences_in_their_order(
    copier: Any, tokenizer: Any, beams: int, max_tokens: int
) -> None:
    made = translate_corpus(copier, tokenizer, SENTENCES, beams=beams, max_tokens=max_tokens)
    assert [one.text for one in made] == SENTENCES


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0])
def test_scores_are_log_probabilities_over_length_to_the_penalty(
    copier: Any, tokenizer: Any, beams: int, penalty: float
) -> None:
    for source, one in zip(
        SENTENCES, translate_corpus(copier, tokenizer, SENTENCES, beams=beams, length_penalty=penalty)
    ):
        total, length = log_probability(copier, tokenizer, source, one.text)
        assert one.score == pytest.approx(total / length**penalty, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_one_batch_is_what_generate_gives_of_it(tokenizer: Any, family: str) -> None:
    model = tiny_seq2seq(family, seed=3).eval()
    model.generation_config.max_length = None
    sources = ["klm ij h", "ab ab cde"]
    ids = tokenizer(sources, return_tensors="pt", padding=True)
    wanted = model.generate(
        ids["input_ids"], attention_mask=ids["attention_mask"], num_beams=3, length_penalty=0.6, max_new_tokens=9,
        do_sample=False, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    texts = [text.strip() for text in tokenizer.batch_decode(wanted.sequences, skip_special_tokens=True)]
    made = translate_corpus(model, tokenizer, sources, beams=3, length_penalty=0.6, max_length=9)
    assert made == [Translation(text, score) for text, score in zip(texts, wanted.sequences_scores.tolist())]


def test_nothing_is_drawn_at_random_and_the_model_is_left_as_it_was(copier: Any, tokenizer: Any) -> None:
    model = copy.deepcopy(copier).train()
    model.model.encoder.eval()
    config = model.generation_config
    config.do_sample, config.temperature, config.max_length, config.num_return_sequences = True, 9.0, 3, 2
    settings, modes = config.to_dict(), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    made = translate_corpus(model, tokenizer, SENTENCES, beams=1)
    assert [one.text for one in made] == SENTENCES
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is config
    assert config.to_dict() == settings
    assert torch.equal(torch.get_rng_state(), state)

    def fail(done: int, total: int) -> None:
        raise RuntimeError(f"{done} of {total}")

    with pytest.raises(RuntimeError, match=f"{len(SENTENCES)} of {len(SENTENCES)}"):
        translate_corpus(model, tokenizer, SENTENCES, on_batch=fail)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("beams", [1, 4])
def test_batches_hold_at_most_max_tokens_and_every_sentence_once(copier: Any, tokenizer: Any, beams: int) -> None:
    seen: list[tuple[int, int]] = []
    hook = copier.get_encoder().register_forward_hook(
        lambda module, args, kwargs, output: seen.append(tuple(output.last_hidden_state.shape[:2])), with_kwargs=True
    )
    calls: list[tuple[int, int]] = []
    translate_corpus(
        copier, tokenizer, SENTENCES, beams=beams, max_tokens=40, on_batch=lambda *call: calls.append(call)
    )
    hook.remove()
    assert sum(rows for rows, _ in seen) == len(SENTENCES)
    assert all(rows * width * beams <= 40 for rows, width in seen)
    assert [width for _, width in seen] == sorted((width for _, width in seen), reverse=True)
    assert [done for done, _ in calls] == [sum(rows for rows, _ in seen[: i + 1]) for i in range(len(seen))]
    assert {total for _, total in calls} == {len(SENTENCES)}


@pytest.mark.parametrize("beams", [1, 3])
def test_scores_of_all_tokens_are_not_kept(
    copier: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, beams: int
) -> None:
    generate, found = copier.generate, []
    monkeypatch.setattr(
        copier, "generate", lambda *args, **kwargs: found.append(generate(*args, **kwargs)) or found[-1]
    )
    translate_corpus(copier, tokenizer, SENTENCES, beams=beams)
    assert len(found[0].scores) > 1
    assert sum(step.numel() for step in found[0].scores) == 0


# ---- Translations that do not end


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(("max_length", "tokens"), [(5, 5), (None, 40), (1000, 40), (1, 1)])
def test_what_never_ends_is_cut_at_the_length_and_counted(
    endless: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture, beams: int, max_length: int | None, tokens: int
) -> None:
    """Without a length: twice the source and 50, which is over the model's 40 positions."""
    said: list[int] = []
    hook = endless.get_decoder().register_forward_hook(lambda *_: said.append(1))
    with caplog.at_level(logging.WARNING, logger="hf_lskd.generation"):
        translate_corpus(endless, tokenizer, ["ab", "h ij"], beams=beams, max_length=max_length)
    hook.remove()
    assert len(said) == tokens
    assert "2 of 2 translations" in caplog.text


def test_the_usual_length_is_twice_the_source_and_fifty(tokenizer: Any) -> None:
    model = tiny_marian(positions=200)
    model.final_logits_bias[0, 1] = -1e4
    said: list[int] = []
    model.get_decoder().register_forward_hook(lambda *_: said.append(1))
    translate_corpus(model, tokenizer, ["ab h ij"], beams=1)
    assert len(said) == 2 * len(tokenizer("ab h ij")["input_ids"]) + 50


def test_an_end_forced_at_the_last_place_counts_as_a_cut(
    endless: Any, copier: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for model, cut in ((endless, True), (copier, False)):
        forced = copy.deepcopy(model)
        forced.generation_config.forced_eos_token_id = 1
        caplog.clear()
        translate_corpus(forced, tokenizer, ["ab cde fg", "h"], max_length=12)
        assert ("2 of 2 translations" in caplog.text) is cut


def test_sources_beyond_the_models_positions_are_cut_and_counted(
    copier: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    translate_corpus(copier, tokenizer, ["ab " * 60, "h"], beams=1, max_length=2)
    assert "1 of 2 sources are longer than 40 tokens" in caplog.text


# ---- Files


def test_each_kind_of_file(copier: Any, tokenizer: Any, tmp_path: Path) -> None:
    sources = ["ab\tcde fg", "h"]
    made = [
        translate_corpus(copier, tokenizer, sources, tmp_path / "new" / f"out{s}") for s in (".tsv", ".txt", ".jsonl")
    ]
    assert made[0] == made[1] == made[2] == translate_corpus(copier, tokenizer, sources)
    texts = [one.text for one in made[0]]
    assert (tmp_path / "new/out.tsv").read_text() == f"ab cde fg\t{texts[0]}\nh\t{texts[1]}\n"
    assert (tmp_path / "new/out.txt").read_text() == f"{texts[0]}\n{texts[1]}\n"
    rows = [json.loads(line) for line in (tmp_path / "new/out.jsonl").read_text().splitlines()]
    assert rows == [{"source": s, "target": one.text, "score": one.score} for s, one in zip(sources, made[0])]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out.jsonl", "out.tsv", "out.txt"]


def test_tabs_and_line_breaks_in_a_text_become_spaces(tmp_path: Path) -> None:
    odd = [Translation("ein\tHaus\nда\u2028ß\r", -0.5)]
    for name, content in (("a.tsv", "x y\tein Haus да ß \n"), ("a.txt", "ein Haus да ß \n")):
        write_translations(tmp_path / name, ["x\ty"], odd)
        assert (tmp_path / name).read_bytes() == content.encode()
    write_translations(tmp_path / "a.jsonl", ["x\ty"], odd)
    row = json.loads((tmp_path / "a.jsonl").read_bytes().decode())
    assert row == {"source": "x\ty", "target": odd[0].text, "score": -0.5}


# ---- Going on after a kill


class StoppedError(Exception):
    """The end of a run in the middle."""


def stop_after(sentences: int) -> Callable[[int, int], None]:
    def stop(done: int, _: int) -> None:
        if done >= sentences:
            raise StoppedError

    return stop


def calls_of(model: Any, tokenizer: Any, output: Path, **options: Any) -> list[int]:
    """Translate the sentences into `output`; the sentences done after each batch that had to be decoded."""
    calls: list[int] = []
    translate_corpus(
        model, tokenizer, SENTENCES, output, **{**SMALL, **options}, on_batch=lambda done, _: calls.append(done)
    )
    return calls


def stopped(model: Any, tokenizer: Any, output: Path, sentences: int = 6) -> bytes:
    """A run stopped in the middle; what its partial file holds."""
    with pytest.raises(StoppedError):
        translate_corpus(model, tokenizer, SENTENCES, output, **SMALL, on_batch=stop_after(sentences))
    assert not output.exists()
    return partial_of(output).read_bytes()


def partial_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def test_a_partial_file_cut_anywhere_gives_the_same_file(copier: Any, tokenizer: Any, tmp_path: Path) -> None:
    whole = calls_of(copier, tokenizer, tmp_path / "whole.jsonl")
    wanted = (tmp_path / "whole.jsonl").read_bytes()
    output = tmp_path / "out.jsonl"
    content = stopped(copier, tokenizer, output, sentences=len(SENTENCES))
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == 1 + len(SENTENCES)
    assert len(whole) >= 4
    for line, end in enumerate(ends):  # line 0 is the header
        for cut in {end, end - 1, end - 5, (end + (ends[line - 1] if line else 0)) // 2}:
            partial_of(output).write_bytes(content[:cut])
            sentences = line if cut == end else line - 1
            again = calls_of(copier, tokenizer, output)
            assert output.read_bytes() == wanted
            assert again == [done for done in whole if done > sentences], (line, cut)
            assert not partial_of(output).exists()


@pytest.mark.parametrize("damage", [b"", b"\n", b"{", b"\x00" * 300, b"no header\n"])
def test_a_partial_file_of_something_else_is_begun_anew(
    copier: Any, tokenizer: Any, tmp_path: Path, damage: bytes
) -> None:
    whole = calls_of(copier, tokenizer, tmp_path / "whole.tsv")
    partial_of(tmp_path / "out.tsv").write_bytes(damage)
    assert calls_of(copier, tokenizer, tmp_path / "out.tsv") == whole
    assert (tmp_path / "out.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()


def test_a_damaged_row_ends_what_is_kept(copier: Any, tokenizer: Any, tmp_path: Path) -> None:
    whole = calls_of(copier, tokenizer, tmp_path / "whole.tsv")
    content = stopped(copier, tokenizer, tmp_path / "out.tsv").split(b"\n")
    content[1 + whole[0]] = b'{"id": 999, "text": "", "score": 0, "cut": false}'  # the second batch's first row
    partial_of(tmp_path / "out.tsv").write_bytes(b"\n".join(content))
    assert calls_of(copier, tokenizer, tmp_path / "out.tsv") == whole[1:]
    assert (tmp_path / "out.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()


@pytest.mark.parametrize("what", ["nothing", "beams", "max_tokens", "max_length", "length_penalty", "weight", "config"])
def test_only_the_same_work_goes_on(copier: Any, tokenizer: Any, tmp_path: Path, what: str) -> None:
    model, options = copy.deepcopy(copier), dict[str, Any](SMALL)
    stopped(model, tokenizer, tmp_path / "out.tsv")
    if what == "weight":
        next(iter(model.parameters())).data.flatten()[-1] += 1e-6
    elif what == "config":
        model.generation_config.no_repeat_ngram_size = 9
    elif what != "nothing":
        options[what] = {"beams": 3, "max_tokens": 24, "max_length": 30, "length_penalty": 0.5}[what]
    calls = calls_of(model, tokenizer, tmp_path / "out.tsv", **options)
    fresh = calls_of(model, tokenizer, tmp_path / "fresh.tsv", **options)
    assert (calls != fresh) is (what == "nothing")
    assert (tmp_path / "out.tsv").read_bytes() == (tmp_path / "fresh.tsv").read_bytes()


def test_other_sentences_begin_anew(copier: Any, tokenizer: Any, tmp_path: Path) -> None:
    stopped(copier, tokenizer, tmp_path / "out.tsv")
    other = [*SENTENCES[:-1], "ij ab  h"]
    calls: list[int] = []
    translate_corpus(copier, tokenizer, other, tmp_path / "out.tsv", **SMALL, on_batch=lambda n, _: calls.append(n))
    assert calls[0] < 6
    assert read_sources(tmp_path / "out.tsv") == other


def test_cuts_before_a_stop_are_counted_too(
    endless: Any, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(endless, tokenizer, tmp_path / "out.tsv")
    calls_of(endless, tokenizer, tmp_path / "out.tsv")
    assert f"{len(SENTENCES)} of {len(SENTENCES)} translations" in caplog.text


def test_a_killed_process_is_gone_on_from_to_the_same_bytes(copier: Any, tokenizer: Any, tmp_path: Path) -> None:
    copier.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    whole = calls_of(copier, tokenizer, tmp_path / "whole.jsonl")
    output = tmp_path / "out.jsonl"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", KILLED, str(tmp_path / "model"), str(output)]
    with subprocess.Popen(call, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        done = 0
        for line in process.stdout:
            done = int(line)
            if done > len(SENTENCES) // 2:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    assert 5 < done < len(SENTENCES)
    assert calls_of(copier, tokenizer, output) == [n for n in whole if n > done]
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# ---- Bad input


@pytest.mark.parametrize(
    ("sources", "options", "said"),
    [
        ([], {}, "no sentences"),
        ("ab", {}, "one string"),
        (["ab", " \t", "h"], {}, "line 2 of 3 is empty"),
        (["ab"], {"beams": 0}, "beams 0"),
        (["ab"], {"max_tokens": 0}, "max_tokens 0"),
        (["ab"], {"max_length": 0}, "max_length 0"),
        (["ab"], {"beams": 1.5}, "beams 1.5"),
        (["ab"], {"length_penalty": float("nan")}, "length_penalty nan"),
        (["ab"], {"output": Path("out.csv")}, "out.csv"),
    ],
)
def test_bad_sentences_and_options_are_refused(
    copier: Any, tokenizer: Any, sources: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        translate_corpus(copier, tokenizer, sources, **options)


@pytest.mark.parametrize(("special", "missing"), [({"pad_token": "<pad>"}, "eos"), ({"eos_token": "</s>"}, "pad")])
def test_a_tokenizer_without_pad_or_end_is_refused(copier: Any, special: dict[str, str], missing: str) -> None:
    with pytest.raises(InputError, match=f"no {missing} token"):
        translate_corpus(copier, tiny_tokenizer(**special), SENTENCES)


def test_a_model_that_does_not_fit_is_refused(tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, MBartConfig, MBartForConditionalGeneration

    decoder = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=VOCABULARY, n_positions=8))
    with pytest.raises(InputError, match="GPT2LMHeadModel is no encoder-decoder"):
        translate_corpus(decoder, tokenizer, SENTENCES)
    with pytest.raises(InputError, match="for a model of 10 token rows"):
        translate_corpus(tiny_marian(vocab_size=10), tokenizer, SENTENCES)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "d_model": 16}
    startless = MBartForConditionalGeneration(MBartConfig(vocab_size=VOCABULARY, **sizes))
    with pytest.raises(InputError, match="decoder_start_token_id"):
        translate_corpus(startless, tokenizer, SENTENCES)


# ---- Sentences from files


@pytest.mark.parametrize(
    ("name", "content", "sources"),
    [
        ("a.txt", "Привет мир\nGrüß\tGott\n", ["Привет мир", "Grüß\tGott"]),
        ("a.txt", "\ufeffein\r\nzwei\u2028drei", ["ein", "zwei\u2028drei"]),
        ("a.tsv", "ein\tone\nzwei\n", ["ein", "zwei"]),
        ("a.jsonl", '{"source": "ein\\nzwei", "target": "x"}\n{"source": "ß"}\n', ["ein\nzwei", "ß"]),
    ],
)
def test_sentences_of_each_kind_of_file(tmp_path: Path, name: str, content: str, sources: list[str]) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_sources(tmp_path / name) == sources


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"ein\n\nzwei\n", "a.txt, line 2 is empty"),
        ("a.txt", b"ein\n  \n", "a.txt, line 2 is empty"),
        ("a.txt", b"ein\nab\xff\n", "a.txt, line 2: byte 3 is not UTF-8"),
        ("a.tsv", b"ein\tone\n\ttwo\n", "a.tsv, line 2 is empty"),
        ("a.jsonl", b'{"source": "x"}\n{"source"\n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"target": "x"}\n', 'line 1 has no text "source"'),
        ("a.jsonl", b'["source"]\n', 'line 1 has no text "source"'),
        ("a.jsonl", b'{"source": 3}\n', 'line 1 has no text "source"'),
        ("a.jsonl", b'{"source": " "}\n', "line 1 is empty"),
        ("a.csv", b"ein\n", "a.csv as input or output. Allowed: a file ending in .tsv, .txt, .jsonl"),
    ],
)
def test_bad_files_are_refused_with_file_and_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_sources(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt cannot be read \(No such file"):
        read_sources(tmp_path / "none.txt")
