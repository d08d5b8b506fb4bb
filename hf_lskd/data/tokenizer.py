"""A joint byte-pair tokenizer of both languages, trained once from the training text by the `tokenizers` library."""

from collections.abc import Iterable
from typing import Any

from hf_lskd.errors import InputError, nearest

UNKNOWN, END, PAD = "<unk>", "</s>", "<pad>"


def train_bpe(texts: Iterable[str], vocab_size: int) -> Any:
    """A `PreTrainedTokenizerFast` of at most `vocab_size` tokens over `texts` of both languages; the same texts give the same.

    Words carry a leading "▁", punctuation and digits stand alone, every sequence ends with `</s>`. `<pad>` has the last id:
    it starts Marian's decoders, and CTranslate2's loader relies on that place. `AutoTokenizer` loads what it saves.
    Raises InputError when `vocab_size` leaves no room for the characters of the texts.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    kept = list(texts)
    alphabet = {character for text in kept for character in text if not character.isspace()} | {"▁"}
    if len(alphabet) + 3 > vocab_size:
        raise InputError(
            f"data.vocab_size: {vocab_size} for texts of {len(alphabet)} different characters",
            f"at least {len(alphabet) + 3}",
            "A few hundred to a few thousand more make words.",
        )
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, special_tokens=[UNKNOWN, END], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(kept, trainer)
    tokenizer.add_special_tokens([PAD])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a folder or Hub name. Raises InputError when it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"data.tokenizer: {name!r} cannot be read ({str(error).splitlines()[0]})",
            "a folder with a tokenizer, or a Hub name",
            "Without data.tokenizer one is trained from the training text.",
        ) from error


def set_languages(tokenizer: Any, source: str, target: str) -> None:
    """Tell a multilingual tokenizer (M2M100, NLLB, mBART) which languages its two sides are; others are left as they are.

    Its own codes are known too: `eng_Latn` is NLLB's, `en_XX` mBART's `en`. Raises InputError for a language that it has no
    code for, and for another pair than that of a tokenizer of one pair.
    """
    if not hasattr(tokenizer, "src_lang") or not hasattr(tokenizer, "tgt_lang"):
        return
    if hasattr(tokenizer, "src_vocab_file"):  # FSMT's are of one pair
        if (source, target) != (tokenizer.src_lang, tokenizer.tgt_lang):
            own = f"{tokenizer.src_lang} to {tokenizer.tgt_lang}"
            raise InputError(f"languages {source} to {target} for a tokenizer of {own}", own)
        return
    tokenizer.src_lang, tokenizer.tgt_lang = (language_code(tokenizer, code) for code in (source, target))


def language_code(tokenizer: Any, language: str) -> str:
    """The tokenizer's own code of a language: the very word, or the one code that begins with it ("de" for "de_DE")."""
    tokens = [
        token.strip("_") for token in tokenizer.all_special_tokens if token not in (tokenizer.eos_token, PAD, UNKNOWN)
    ]
    codes = sorted({token for token in tokens if token[:2].isalpha() and "<" not in token})
    if language in codes:
        return language
    found = [code for code in codes if code.startswith(f"{language}_")]
    if len(found) != 1:
        raise InputError(
            f"language {language!r} for the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}",
            f"one of its own codes: {', '.join(codes[:12])}{', …' if len(codes) > 12 else ''}",
            f"Which of {', '.join(found)}?"
            if found
            else nearest(language, codes) or "Give its own code in the recipe.",
        )
    return found[0]
