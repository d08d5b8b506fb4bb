"""What a card says of the data that a recipe's source stands for: names, whether the Hub has them, licences."""

from collections.abc import Mapping
from typing import Any

# id: a data set on the Hub, or a plain name where it has none (shown there as text). `license` is what weights trained from
# scratch on these data are given unless the user says otherwise; of data that are the user's own we know none.
SOURCES: dict[str, dict[str, str]] = {
    "digits": {
        "id": "sklearn-digits",
        "name": "scikit-learn digits",
        "license": "apache-2.0",
        "words": "Optical recognition of handwritten digits (E. Alpaydin, C. Kaynak; UCI), as scikit-learn ships them; CC BY.",
    },
    "glyphs": {
        "id": "font-glyphs",
        "name": "Letters drawn from fonts",
        "license": "apache-2.0",
        "words": "Letters drawn from the fonts that matplotlib ships (DejaVu: Bitstream Vera licence; STIX: SIL Open Font Licence) "
        "or from fonts of the user's.",
    },
    "cldr": {
        "id": "unicode-cldr-phrases",
        "name": "Phrases of Unicode CLDR",
        "license": "apache-2.0",
        "words": "Phrases composed from the names and patterns of Unicode CLDR by Babel (Unicode-3.0, BSD).",
    },
    "imagenet": {
        "id": "ILSVRC/imagenet-1k",
        "name": "ImageNet-1k",
        "words": "ImageNet (ILSVRC): its terms allow research that is not commercial.",
    },
    "cub200": {
        "id": "cub-200-2011",
        "name": "CUB-200-2011",
        "words": "Caltech-UCSD Birds-200-2011: its pictures are others' property, for research that is not commercial.",
    },
    "wit3": {
        "id": "IWSLT/ted_talks_iwslt",
        "name": "IWSLT, TED talks (WIT3)",
        "words": "Transcripts of TED talks by WIT3: CC BY-NC-ND.",
    },
}
OWN = "The user's own; its licence is for whoever publishes the model to say (`hf-lskd publish --license`)."


def of_data(record: Mapping[str, Any]) -> dict[str, str]:
    """`id`, `name`, `license` and `words` of a record's data; what is not known is missing."""
    given = dict((record.get("card") or {}).get("data") or {})
    block = (record.get("recipe") or {}).get("data") or {}
    source = str(block.get("source") or "")
    known = SOURCES.get(source)
    if known is not None:
        return {**known, **given}
    name = str(block.get("name") or block.get("path") or "")
    on_hub = source == "dataset" and name.count("/") == 1 and not name.startswith((".", "/", "~"))
    found = {"id": name} if on_hub else {}
    called = name.rstrip("/").rpartition("/")[2] or source or "the user's own data"
    return {**found, "name": called, "words": OWN, **given}
