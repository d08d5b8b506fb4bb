"""Parallel text in memory: what every source of translations gives, whatever it was read from."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_lskd.errors import InputError


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations, `sources[i]` with `targets[i]`. Raises InputError when the counts differ."""

    sources: Sequence[str]
    targets: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.targets):
            raise InputError(f"{len(self.sources)} sources and {len(self.targets)} targets", "one target a source")

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True)
class ParallelSource:
    """The splits of one parallel corpus. `test` None: the source has only a validation split, which is judged on.

    `facts` is what a report says of the data (versions, preparation, how many pairs were left out and why). `tokenised`: the
    texts are Moses tokens, lower-cased and escaped. `pieces`: how words are cut in them (`subword_nmt`, `sentencepiece`), empty
    where they are whole; scores are of whole words.
    """

    train: Pairs
    validation: Pairs
    source_lang: str
    target_lang: str
    test: Pairs | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    tokenised: bool = False
    pieces: str = ""

    @property
    def held_out(self) -> Pairs:
        """The split that models are judged on."""
        return self.validation if self.test is None else self.test

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every sentence of every split, in order."""
        digest = hashlib.sha256(repr((self.source_lang, self.target_lang)).encode())
        for pairs in (self.train, self.validation, self.test):
            for texts in (pairs.sources, pairs.targets) if pairs is not None else ():
                digest.update(b"\x00split")
                for text in texts:
                    digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()
