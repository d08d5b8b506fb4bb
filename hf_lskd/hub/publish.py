"""Repositories on the Hub from files at hand, by huggingface_hub: checked first, shown, then one commit each."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_lskd.card_licences import LICENSE
from hf_lskd.errors import InputError
from hf_lskd.models.files import PICKLED, first_line
from hf_lskd.record import FILE

TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
TEXT = (".json", ".md", ".html", ".csv", ".txt", ".jinja")
IMPOSSIBLE = re.compile(r"[\x00-\x20~^:?*\[\\\x7f]|\.\.|@\{|//|^[/.@-]|/\.|[/.]$|\.lock$")  # in the name of a branch
THEIRS = (".gitattributes",)  # what the Hub itself puts into a new repository


@dataclass(frozen=True)
class Upload:
    """One repository: where it goes, its files by their path there, and what tells it from others of the same name."""

    repo_id: str
    files: Mapping[str, Path | bytes]
    identity: Mapping[str, Any]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in self.files.items()}


def check_repo_id(repo_id: str, option: str = "--repo-id") -> str:
    """The name of a repository, given by `option`. Raises InputError for one that the Hub does not take, path traversal included."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{option} {repo_id!r} ({first_line(error)})", "NAME or OWNER/NAME") from error
    return repo_id


def check_revision(revision: str | None) -> None:
    """Raise InputError for what cannot be the name of a branch (the rules of `git check-ref-format`)."""
    if revision is not None and (IMPOSSIBLE.search(revision) or not revision):
        raise InputError(f"--revision {revision!r}", "the name of a branch, such as main or v1.0")


def check_files(upload: Upload) -> None:
    """Raise InputError for what must not leave the machine: pickles, paths out of the repository, tokens in text."""
    from huggingface_hub.utils import get_token

    own = (get_token() or "").encode()
    for name, content in upload.files.items():
        if Path(name).suffix in PICKLED or Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{name} in {upload.repo_id}", "safetensors, JSON and text inside the repository")
        if Path(name).suffix not in TEXT and name != LICENSE:
            continue
        text = content if isinstance(content, bytes) else content.read_bytes()
        if TOKEN.search(text) or (own and own in text):
            raise InputError(
                f"{name} holds what looks like a token of the Hub", "files without secrets", "Take it out."
            )


def shown(upload: Upload) -> list[str]:
    """What an upload holds, a line a file with its size in bytes, and the sum."""
    sizes = upload.sizes
    lines = [f"{upload.repo_id}", *(f"{size:>13,}  {name}" for name, size in sizes.items())]
    return [*lines, f"{sum(sizes.values()):>13,}  in {len(sizes)} files"]


def check_card(upload: Upload) -> None:
    """Raise InputError for a card whose metadata the Hub refuses, before anything is made there."""
    from huggingface_hub import ModelCard

    content = upload.files["README.md"]
    text = content if isinstance(content, bytes) else content.read_bytes()
    try:
        ModelCard(text.decode()).validate()
    except ValueError as error:
        raise InputError(f"the Hub refuses the card of {upload.repo_id} ({first_line(error, 400)})") from error


def owner() -> str:
    """The user whose token is at hand. Raises InputError without a token that the Hub takes, and without the Hub."""
    from huggingface_hub import HfApi

    with plain_errors("your account"):
        return str(HfApi().whoami()["name"])


def published(uploads: Sequence[Upload], private: bool = False, revision: str | None = None) -> Iterator[str]:
    """Bring each repository to hold its files, in one commit; gives the commits' addresses as they are made.

    All are looked at before the first is written. A repository that holds the same model already is completed or left as it
    is, and content that the Hub has is not sent again: so this may be repeated after an interruption. Raises InputError when a
    repository holds anything else, and for everything that the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    for upload in uploads:
        check_repo_id(upload.repo_id)
        check_files(upload)
        with plain_errors(upload.repo_id):
            check_card(upload)
            check_there(api, upload, revision)
    for upload in uploads:
        with plain_errors(upload.repo_id):
            yield committed(api, upload, private, revision)


def committed(api: Any, upload: Upload, private: bool, revision: str | None) -> str:
    from huggingface_hub import CommitOperationAdd

    done = api.create_commit(
        upload.repo_id,
        [CommitOperationAdd(name, content) for name, content in upload.files.items()],
        commit_message=f"{upload.identity['name']}, by hf-lskd",
        revision=revision,
        parent_commit=prepared(api, upload, private, revision),
    )
    return str(done.commit_url)


def check_there(api: Any, upload: Upload, revision: str | None) -> None:
    """Raise InputError when there is a repository, and a branch, that holds anything else; silent where there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        head = api.model_info(upload.repo_id, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return
    check_content(api, upload, head.sha, {file.rfilename for file in head.siblings or ()})


def prepared(api: Any, upload: Upload, private: bool, revision: str | None) -> str:
    """The commit that ours goes on top of: the repository is made where it is missing, and so is the branch, without content."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        api.model_info(upload.repo_id)
    except RepositoryNotFoundError:
        api.create_repo(upload.repo_id, private=private)
    try:
        head = api.model_info(upload.repo_id, revision=revision)
    except RevisionNotFoundError:
        first = api.list_repo_commits(upload.repo_id)[-1].commit_id
        api.create_branch(upload.repo_id, branch=revision, revision=first)
        head = api.model_info(upload.repo_id, revision=revision)
    check_content(api, upload, head.sha, {file.rfilename for file in head.siblings or ()})
    return str(head.sha)


def check_content(api: Any, upload: Upload, commit: str, there: set[str]) -> None:
    """Raise InputError unless the repository is empty or its record says that it is of this very model (or study)."""
    there = there - set(THEIRS)
    if not there:
        return
    found = remote_record(api, upload.repo_id, commit) if FILE in there else {}
    if {key: found.get(key) for key in upload.identity} != dict(upload.identity):
        what = (
            f"{found.get('name', 'another model')}"
            if found
            else f"files that are not from hf-lskd ({', '.join(sorted(there)[:3])})"
        )
        raise InputError(
            f"{upload.repo_id} exists and holds {what}",
            f"a new repository, or one with {upload.identity['name']} of this very study",
            "Choose another --repo-id or --revision.",
        )


def remote_record(api: Any, repo_id: str, commit: str) -> dict[str, Any]:
    """The record in a repository; empty where it is none."""
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(api.hf_hub_download(repo_id, FILE, revision=commit, local_dir=folder))
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return {}
    return found if isinstance(found, dict) else {}


# ---- What can go wrong on the way, in one sentence each


@contextlib.contextmanager
def plain_errors(name: str) -> Iterator[None]:
    """Errors of the client as InputError: no token, a wrong one, no right to write, no network, refused metadata."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except InputError:
        raise
    except LocalTokenNotFoundError as error:
        raise InputError("no token for the Hub", "a token that may write", SIGN_IN) from error
    except OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE is set", "the Hub within reach", "Unset it to publish.") from error
    except HfHubHTTPError as error:
        raise refused(name, error) from error
    except Exception as error:
        if (lost := network_error(error)) is None:
            raise
        again = "Run the same command again: what has arrived is not sent twice."
        raise InputError(f"the Hub cannot be reached for {name} ({lost})", "a network", again) from error


SIGN_IN = "Run `hf auth login`, or set HF_TOKEN."


def refused(name: str, error: Any) -> InputError:
    """What the Hub's answer means for whoever publishes."""
    status = getattr(error.response, "status_code", None)
    said = str(getattr(error, "server_message", None) or first_line(error))
    if status == 401:
        return InputError(f"the Hub does not take this token for {name}", "a token that may write", SIGN_IN)
    if status == 403:
        return InputError(f"this token may not write to {name} ({said})", "a token with that right", SIGN_IN)
    if status in (409, 412):
        return InputError(f"{name} changed while it was written ({said})", "one writer", "Run the same command again.")
    return InputError(f"the Hub refused {name}: {said}", "", "Run the same command again, or with --debug for more.")


def network_error(error: BaseException | None) -> str | None:
    """The first error of the HTTP library in a chain of causes, in words; None where there is none."""
    while error is not None:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
            return (
                f"{type(error).__name__}: {first_line(error)}" if isinstance(error, Exception) else type(error).__name__
            )
        error = error.__cause__ or error.__context__
    return None
