"""WordNet's noun file for a few hand-made synsets, in the format of the real one."""

from collections.abc import Mapping, Sequence

LICENCE = "  1 A licence stands here.  \n  2 WordNet {version} Copyright by nobody.  \n"
Entry = tuple[Sequence[str], Sequence[str]]  # the words, and the names of the hypernyms


def noun_file(entries: Mapping[str, Entry], version: str = "3.0") -> tuple[bytes, dict[str, str]]:
    """The file's bytes, and the id of each entry, such as n00000123. Other pointers than hypernyms are strewn in."""
    head = LICENCE.format(version=version)
    at = dict.fromkeys(entries, 0)
    for _ in range(2):  # offsets have one width, so the second pass knows them all
        text = head
        for name, (words, above) in entries.items():
            at[name] = len(text.encode())
            pointers = [f"@{'i' if name[0].isupper() else ''} {at[h]:08d} n 0000" for h in above]
            below = [f"~ {at[n]:08d} n 0000" for n, (_, parents) in entries.items() if name in parents]
            every = [*below, *pointers, "+ 00000001 v 0101"]
            said = " ".join(f"{word} {i % 16:x}" for i, word in enumerate(words))
            text += f"{at[name]:08d} 05 n {len(words):02x} {said} {len(every):03d} {' '.join(every)} | its gloss @ 1 \n"
    return text.encode(), {name: f"n{offset:08d}" for name, offset in at.items()}


# Five of one kind, three of another under the same root, and a kind of the first kind's that is no class.
KENNEL: dict[str, Entry] = {
    "thing": (["thing"], []),
    "dog": (["dog", "hound"], ["thing"]),
    "boat": (["boat"], ["thing"]),
    "spaniel": (["spaniel"], ["dog"]),
    **{f"dog{i}": ([f"dog{i}"], ["dog"]) for i in range(3)},
    **{f"spaniel{i}": ([f"spaniel{i}"], ["spaniel"]) for i in range(2)},
    **{f"boat{i}": ([f"boat{i}"], ["boat"]) for i in range(3)},
}
CLASSES = ["dog0", "dog1", "dog2", "spaniel0", "spaniel1", "boat0", "boat1", "boat2"]
