"""What is particular to encoder-decoder students and teachers: token maps, decoder inputs, logits of one width."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_lskd.errors import InputError
from hf_lskd.models.sequence import (
    decoder_inputs,
    decoder_start,
    is_encoder_decoder,
    load_trained_seq2seq,
    rows_of,
    target_tokens,
    tokenizer_beside,
)
from hf_lskd.teacher import Member, Teacher, check_separate, logits_of
from hf_lskd.teacher_cache import DECODER_IDS

logger = logging.getLogger(__name__)

DECODER_KEYS = (DECODER_IDS, "decoder_attention_mask")
REMEDY = (
    "Token-level distillation needs one vocabulary. Distil at sequence level instead: let the teacher translate the "
    "training text (`hf-lskd translate`) and train the student on that."
)


class Seq2SeqMember(Member):
    """A frozen encoder-decoder whose logits are brought to the student's width."""

    def __init__(self, model: nn.Module, width: int | None, own_dtype: bool) -> None:
        super().__init__(model, None, own_dtype)
        self.width = width

    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """`[B, L, V]` under teacher forcing; `inputs` holds the labels too, which the decoder reads behind its own start."""
        given = {key: value for key, value in inputs.items() if key != "labels"}
        if DECODER_IDS not in given:
            given[DECODER_IDS] = decoder_inputs(self.model, inputs["labels"])
        self.stay_in_eval()
        device = given[DECODER_IDS].device.type
        with torch.autocast(device, enabled=False if self.own_dtype else torch.is_autocast_enabled(device)):
            return fitted(logits_of(self.forward(**given, use_cache=False)), self.width)


def fitted(logits: Tensor, width: int | None) -> Tensor:
    """Logits `[..., V']` as `[..., width]`: rows beyond it are padding of the embedding; rows that are missing are ruled out."""
    if width is None or logits.shape[-1] == width:
        return logits
    if logits.shape[-1] > width:
        return logits[..., :width]
    return nn.functional.pad(logits, (0, width - logits.shape[-1]), value=-torch.inf)


def prepare_seq2seq_teacher(
    source: Any, student: nn.Module, tokenizer: Any, *, device: torch.device, dtype: str | None = None
) -> Teacher:
    """A teacher ready for an encoder-decoder `student`, from a module, a name or path, or a list of these (an ensemble).

    `tokenizer` is the student's (None: unknown). Raises InputError when the token maps differ, in words or in number, when
    sizes differ and a token map is not known, when a teacher shares weights with the student, and for incomplete weights.
    """
    sources: Sequence[Any] = list(source) if isinstance(source, list | tuple) else [source]
    if not sources:
        raise InputError("teacher_model is an empty list", "a module, a name or path, or a list of these")
    members = []
    for one in sources:
        model: Any = one if isinstance(one, nn.Module) else load_trained_seq2seq(str(one))
        if not is_encoder_decoder(model):
            raise InputError(f"a teacher {type(model).__name__} for an encoder-decoder student", "an encoder-decoder")
        check_separate(model, student)
        width = common_width(model, student, tokenizer_beside(model), tokenizer)
        if dtype is not None:
            model = (copy.deepcopy(model) if model is one else model).to(getattr(torch, dtype))
        model.requires_grad_(False).eval().to(device)
        members.append(Seq2SeqMember(model, width, dtype is not None))
    return Teacher(members)


def common_width(teacher: Any, student: Any, teacher_tokenizer: Any, tokenizer: Any) -> int | None:
    """The student's number of logits where the two token maps agree; None where the student's embedding is not known.

    Rows beyond the token map are padding. Raises InputError with both sizes and the remedy in every other case.
    """
    theirs, ours = rows_of(teacher), rows_of(student)
    if teacher_tokenizer is None or tokenizer is None:
        if theirs != ours:
            raise InputError(
                f"a teacher of {theirs} token rows for a student of {ours}, with no tokenizer to compare",
                "equal rows, or both tokenizers (processing_class, and one in the teacher's folder)",
                REMEDY,
            )
        logger.warning(
            "The token maps of teacher and student were not compared, since a tokenizer is missing; their %s rows are "
            "taken for the same tokens. Give processing_class, and a teacher's folder with its tokenizer.",
            ours,
        )
        return ours
    check_token_maps(target_tokens(teacher_tokenizer), target_tokens(tokenizer))
    return ours


def check_token_maps(theirs: Mapping[str, int], ours: Mapping[str, int]) -> None:
    """Raise InputError, with both sizes and the first difference, unless every token has the same id on both sides."""
    if theirs == ours:
        return
    other = sorted((ours.get(token, theirs.get(token, 0)), token) for token, _ in theirs.items() ^ ours.items())
    token = other[0][1]
    raise InputError(
        f"token maps of {len(theirs)} (teacher) and {len(ours)} (student) tokens that differ: {token!r} is "
        f"{theirs.get(token, 'missing')} for the teacher and {ours.get(token, 'missing')} for the student",
        "equal token maps",
        REMEDY,
    )


def check_starts(student: Any, teacher: Teacher) -> None:
    """Raise InputError when a batch brings decoder inputs for models whose decoders start differently."""
    for member in teacher.members:
        theirs, ours = decoder_start(member.model), decoder_start(student)
        if theirs != ours:
            raise InputError(
                f"a batch with {DECODER_IDS} for a student that starts with token {ours} and a teacher that starts with {theirs}",
                f"labels without {DECODER_IDS}: each model then gets them behind its own start",
                "Use hf_lskd's Seq2SeqCollator, or DataCollatorForSeq2Seq(tokenizer) without a model.",
            )
