"""fairseq's translation models as FSMT or M2M100, read without fairseq and without running anything."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_lskd.data.fairseq_dictionary import EOS, read_dictionary
from hf_lskd.errors import InputError
from hf_lskd.hub.conversion import Conversion, check_finite, check_read_back, check_weights, fresh_folder
from hf_lskd.hub.fairseq_config import check_settings, generation_config, model_config, positions, read_settings
from hf_lskd.hub.fairseq_tokenizer import Text, build_tokenizer
from hf_lskd.models.sequence import load_trained_seq2seq
from hf_lskd.models.weights_file import read_checkpoint, sha256_of, weights_in

NAMES = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")
NO_WEIGHTS = ("version", "_float_tensor")  # buffers that older releases save beside the weights
EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
LANGUAGE = re.compile(r"[A-Za-z][\w@-]*")
KINDS = {"fsmt": "FSMT", "m2m_100": "M2M100"}


def convert_fairseq(
    source: Path,
    target: Path,
    *,
    data_bin: Path | None = None,
    bpe_codes: Path | None = None,
    languages: tuple[str | None, str | None] = (None, None),
    lower_case: bool = False,
) -> Conversion:
    """A folder for transformers, tokenizer included, from a checkpoint of fairseq-train (or the folder with its model.pt).

    The dictionaries `dict.LANG.txt` lie in `data_bin`, else beside the checkpoint. Raises InputError for files that cannot be
    read, variants that transformers has no model for (named, with the reason), weights or dictionaries that do not fit, and
    a `target` with content.
    """
    file = checkpoint_file(source)
    checkpoint = read_checkpoint(file)
    settings = read_settings(checkpoint, file)
    kind = check_settings(settings, file)
    state = weights_of(checkpoint, file)
    sides = chosen_languages(settings, languages, file)
    dictionaries = {side: (data_bin or file.parent) / f"dict.{side}.txt" for side in sides}
    tokens = [read_dictionary(dictionaries[side]) for side in sides]
    check_dictionaries(tokens, state, list(dictionaries.values()))
    text = Text(sides, tokens[0], tokens[1], bpe_codes, lower_case)
    config = model_config(kind, settings, (len(tokens[0]), len(tokens[1])), sides, file)
    model, used = build(kind, config, state, settings, file)
    digests = {one.name: sha256_of(one) for one in (file, *dictionaries.values(), *([bpe_codes] if bpe_codes else []))}
    name = settings.get("arch") or settings.get("_name")
    found = Conversion("fairseq", source.name, digests, f"{name} as {KINDS[kind]}", {"weights": used})
    found.checks["forward"] = forward(model, tokens)
    with fresh_folder(target) as folder:
        tokenizer, takes = build_tokenizer(text, positions(settings)[0], folder)
        model.save_pretrained(folder)
        found.checks["tokens"] = check_tokens(tokenizer, tokens)
        found.checks["read back"] = check_read_back(model, load_trained_seq2seq(str(folder)))
        found.remarks = [f"the tokenizer takes {takes}", *remarks(settings, kind, tokens)]
        if bpe_codes is not None and "@-@" not in tokens[0]:
            found.remarks.append("FSMTTokenizer splits words at hyphens (@-@), which the source's dictionary has not")
        found.write(folder)
    return found


def checkpoint_file(source: Path) -> Path:
    """The file itself, or the checkpoint in a folder by its usual names."""
    if not source.is_dir():
        return source
    found = next((source / name for name in NAMES if (source / name).is_file()), None)
    if found is None:
        raise InputError(f"{source} has no checkpoint", f"one of {', '.join(NAMES)}, or the path of a file")
    return found


def weights_of(checkpoint: Any, file: Path) -> dict[str, Tensor]:
    """The model's weights, without the buffers that are none."""
    state = weights_in({"model": checkpoint["model"]} if "model" in checkpoint else checkpoint, file)
    return {key: value for key, value in state.items() if key.rsplit(".", 1)[-1] not in NO_WEIGHTS}


def chosen_languages(settings: Mapping[str, Any], given: tuple[str | None, str | None], file: Path) -> tuple[str, str]:
    found = [one or settings.get(key) for one, key in zip(given, ("source_lang", "target_lang"))]
    if not all(found):
        raise InputError(f"{file} does not say its languages", "--source-lang and --target-lang")
    for one in found:
        if not LANGUAGE.fullmatch(str(one)):  # it is part of a file's name
            raise InputError(f"language {one!r}", "letters, digits, - and _, such as en or de_DE")
    return str(found[0]), str(found[1])


def check_dictionaries(tokens: Sequence[Sequence[str]], state: Mapping[str, Tensor], files: Sequence[Path]) -> None:
    """Raise InputError for a dictionary of other length than its embedding has rows."""
    for index, key in ((0, EMBEDDINGS[0]), (-1, EMBEDDINGS[1])):
        rows = len(state[key]) if key in state else None
        if rows is not None and rows != len(tokens[index]):
            raise InputError(
                f"{files[index]} makes {len(tokens[index])} tokens (4 of them fairseq's own) for {key} of {rows} rows",
                "the dictionary that the model was trained with",
                "--data-bin FOLDER says where it lies.",
            )


def build(
    kind: str, config: Any, state: Mapping[str, Tensor], settings: Mapping[str, Any], file: Path
) -> tuple[Any, str]:
    """The model of transformers with these weights, and what was used of them, in words."""
    from transformers import FSMTForConditionalGeneration, M2M100ForConditionalGeneration

    model: Any = (FSMTForConditionalGeneration if kind == "fsmt" else M2M100ForConditionalGeneration)(config)
    own = model.state_dict()
    wanted = {name: own[ours] for ours, name in fairseq_names(own).items()}
    shared = dict(state)
    if EMBEDDINGS[2] not in shared and settings.get("share_decoder_input_output_embed") and EMBEDDINGS[1] in shared:
        shared[EMBEDDINGS[2]] = shared[EMBEDDINGS[1]]  # releases before 0.10 save it once
    used = check_weights(shared, wanted, f"{file.name} as {KINDS[kind]}")
    if settings.get("share_all_embeddings") and not all(
        torch.equal(shared[EMBEDDINGS[0]], shared[k]) for k in EMBEDDINGS
    ):
        raise InputError(
            f"{file}: share_all_embeddings with embeddings that differ", "weights as fairseq-train saves them"
        )
    names = fairseq_names(own)
    filled = {ours: shared[names[ours]].to(torch.float32) if ours in names else own[ours] for ours in own}
    model.load_state_dict(filled)
    model.generation_config = generation_config()
    return model.eval(), used


def fairseq_names(own: Mapping[str, Tensor]) -> dict[str, str]:
    """{transformers' name: fairseq's} of each weight; positions are computed on both sides, M2M100's shared table is the rest."""
    names = {"lm_head.weight": EMBEDDINGS[2], "model.shared.weight": EMBEDDINGS[0]}
    return {key: names.get(key, key.removeprefix("model.")) for key in own if "embed_positions" not in key}


@torch.no_grad()
def forward(model: Any, tokens: Sequence[Sequence[str]]) -> str:
    """A pass over random tokens of both dictionaries."""
    draw = torch.Generator().manual_seed(0)
    said = [torch.randint(4, max(5, len(side)), (2, 7), generator=draw) for side in tokens]
    for rows in said:
        rows[:, -1] = EOS
    logits = model(
        input_ids=said[0] % len(tokens[0]), decoder_input_ids=said[1] % len(tokens[1]), use_cache=False
    ).logits
    return check_finite(logits, "the converted model")


def check_tokens(tokenizer: Any, tokens: Sequence[Sequence[str]]) -> str:
    """That the tokenizer's ids are the dictionary's; in words. Raises RuntimeError when they are not."""
    from hf_lskd.hub.fairseq_tokenizer import piece
    from hf_lskd.models.sequence import target_tokens

    as_is = getattr(tokenizer, "encoder", None) is None  # a fast tokenizer keeps fairseq's spelling
    for known, side in ((tokenizer.get_vocab(), tokens[0]), (target_tokens(tokenizer), tokens[1])):
        if {token if as_is else piece(token): i for i, token in enumerate(side)} != dict(known):
            raise RuntimeError("the tokenizer's ids are not the dictionary's")
    return f"{len(tokens[0])} and {len(tokens[1])}, each with the dictionary's id"


def remarks(settings: Mapping[str, Any], kind: str, tokens: Sequence[Sequence[str]]) -> list[str]:
    """What whoever uses the model has to know."""
    found = []
    if kind == "fsmt" and settings.get("share_decoder_input_output_embed") and not settings.get("share_all_embeddings"):
        found.append("trained on, the decoder's input and output embeddings go apart: FSMT ties all three or none")
    if list(tokens[0]) != list(tokens[1]):
        found.append("two dictionaries: FSMTTokenizer encodes targets by the source's, so this model translates only")
    if settings.get("label_smoothing"):
        found.append(f"label_smoothing {settings['label_smoothing']} in fairseq is α/(K−1) a token, not α/K")
    return found
