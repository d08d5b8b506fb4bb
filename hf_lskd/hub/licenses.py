"""The licences that the Hub knows, from its own list in `licenses.json`, and what it asks for beside `other`."""

import json
import re
from pathlib import Path

from hf_lskd.errors import InputError, nearest

LIST = json.loads(Path(__file__).with_name("licenses.json").read_text(encoding="utf-8"))
IDENTIFIERS = frozenset(LIST["identifiers"])
PAGE = "https://hf.co/docs/hub/repositories-licenses"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
EMPTY = "''"  # as a shell writes it
LICENSE = "LICENSE"  # the licence's text in a repository


def licence(identifier: str | None, name: str | None, link: str | None) -> dict[str, str]:
    """What a card says of a licence: `license`, and of one that is not on the Hub's list `license_name` and `license_link`.

    `link` is an address, or a file that goes into the repository as LICENSE. Raises InputError for an identifier that is not
    on the list (with the nearest ones), for `other` without a name, and for a name or link beside any other identifier.
    """
    if identifier is not None and identifier not in IDENTIFIERS:
        known = nearest(identifier.lower().replace(" ", "-"), sorted(IDENTIFIERS))
        what = f"an identifier of {PAGE} (as of {LIST['date']}), or other with --license-name"
        raise InputError(f"--license {identifier or EMPTY}", what, known)
    if identifier != "other":
        for option, value in (("--license-name", name), ("--license-link", link)):
            if value is not None:
                received = (
                    f"{option} without --license" if identifier is None else f"{option} with --license {identifier}"
                )
                raise InputError(received, f"{option} with --license other")
        return {} if identifier is None else {"license": identifier}
    if name is None or not NAME.fullmatch(name) or name in IDENTIFIERS:
        received = "--license other without --license-name" if name is None else f"--license-name {name or EMPTY}"
        raise InputError(received, "a short name in lower case without spaces, such as my-license-1.0")
    if link is None:
        return {"license": identifier, "license_name": name}
    if not link.startswith(("https://", "http://")) and not Path(link).is_file():
        raise InputError(f"--license-link {link or EMPTY}", "an address, or the file of the licence's text")
    return {"license": identifier, "license_name": name, "license_link": LICENSE if Path(link).is_file() else link}


def licence_files(link: str | None) -> dict[str, Path | bytes]:
    """The licence's text, where `link` is its file."""
    return {LICENSE: Path(link)} if link is not None and Path(link).is_file() else {}
