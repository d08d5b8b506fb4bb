"""The semantic groups of CUB-200-2011: kinds of birds, read off the class names."""

import re
from collections.abc import Sequence

# The last words that name one bird or mislead, where the family has other classes under another last word.
FAMILIES = {
    **dict.fromkeys(("Yellowthroat", "Ovenbird", "Redstart", "Waterthrush"), "Warbler"),
    **dict.fromkeys(("Kingbird", "Pewee", "Sayornis"), "Flycatcher"),
    **dict.fromkeys(("Junco", "Towhee"), "Sparrow"),
    **dict.fromkeys(("Ani", "Geococcyx"), "Cuckoo"),
    **dict.fromkeys(("Will", "Widow", "Nighthawk"), "Nightjar"),
    "Flicker": "Woodpecker",
    "Kittiwake": "Gull",
    "Violetear": "Hummingbird",
}


def groups_of_birds(names: Sequence[str]) -> tuple[str, ...]:
    """One group a class from names such as "001.Black_footed_Albatross": the last word, Albatross.

    Some last words stand for their family instead, so that no relative counts as dissimilar: yellowthroat, ovenbird, redstart
    and waterthrushes are warblers (wood warblers, Parulidae), kingbirds, pewee and Sayornis (a phoebe) flycatchers (Tyrannidae),
    junco and towhees sparrows (Passerellidae), the ani and Geococcyx (the roadrunner) cuckoos, Whip-poor-will, Chuck-will's-
    widow and nighthawk nightjars, the flicker a woodpecker, the kittiwake a gull and the violetear a hummingbird.
    Other families with several last words (crows, ravens and jays; blackbirds, orioles and cowbirds; gulls and terns) stay
    apart, as do the yellow-breasted chat, whose family is disputed, and the house sparrow stays with its name.
    """
    last = [re.split(r"[ _.]", name)[-1] for name in names]
    return tuple(FAMILIES.get(word, word) for word in last)
