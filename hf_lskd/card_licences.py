"""The licences that the Hub knows, from its own list in `card_licences.json`, and what it asks for beside `other`."""

import json
import re
from pathlib import Path

from hf_lskd.errors import InputError, nearest

LIST = json.loads(Path(__file__).with_name("card_licences.json").read_text(encoding="utf-8"))
IDENTIFIERS = frozenset(LIST["identifiers"])
PAGE = "https://hf.co/docs/hub/repositories-licenses"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
EMPTY = "''"  # as a shell writes it
OPTIONS = ("--license", "--license-name", "--license-link")  # of the command line
LICENSE = "LICENSE"  # the licence's text in a repository


def licence(
    identifier: str | None, name: str | None, link: str | None, words: tuple[str, str, str] = OPTIONS
) -> dict[str, str]:
    """What a card says of a licence: `license`, and of one that is not on the Hub's list `license_name` and `license_link`.

    `link` is an address, or a file that goes into the repository as LICENSE; `words` are what the three are called in messages.
    Raises InputError for an identifier that is not on the list (with the nearest ones, and the way of one that the Hub has newly
    or does not have), for `other` without a name, and for a name or link beside any other identifier.
    """
    its, its_name, its_link = words
    if identifier is not None and identifier not in IDENTIFIERS:
        slug = re.sub(r"[^a-z0-9.-]+", "-", identifier.lower()).strip("-.")
        known = nearest(slug, sorted(IDENTIFIERS))
        what = f"an identifier of {PAGE} (as of {LIST['date']}), or other with {its_name} and {its_link}"
        another = f"For one that is newer, or not there: {its} other, {its_name} {slug or 'my-license-1.0'}."
        raise InputError(f"{its} {identifier or EMPTY}", what, f"{known} {another}".strip())
    if identifier != "other":
        for option, value in ((its_name, name), (its_link, link)):
            if value is not None:
                received = f"{option} without {its}" if identifier is None else f"{option} with {its} {identifier}"
                raise InputError(received, f"{option} with {its} other")
        return {} if identifier is None else {"license": identifier}
    if name is None or not NAME.fullmatch(name) or name in IDENTIFIERS:
        received = f"{its} other without {its_name}" if name is None else f"{its_name} {name or EMPTY}"
        raise InputError(received, "a short name in lower case without spaces, such as my-license-1.0")
    if link is None:
        return {"license": identifier, "license_name": name}
    if not link.startswith(("https://", "http://")) and not Path(link).is_file():
        raise InputError(f"{its_link} {link or EMPTY}", "an address, or the file of the licence's text")
    return {"license": identifier, "license_name": name, "license_link": LICENSE if Path(link).is_file() else link}


def licence_files(link: str | None) -> dict[str, Path]:
    """The licence's text, where `link` is its file."""
    return {LICENSE: Path(link)} if link is not None and Path(link).is_file() else {}
