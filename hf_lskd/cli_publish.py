"""`hf-lskd publish`: a finished cell, or a study with all its finished cells, to the Hub."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lskd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hf_lskd.hub.publish import Upload

EXAMPLE = "hf-lskd publish runs/digits/cells/student-a0-T1-s0 --repo-id me/digits-student --dry-run"
TEXT = "publish a cell or a study on the Hub: safetensors, record and card; run again, it goes on"
INDEX = ("study.json", "results.csv", "eta.csv", "eta_chance.csv", "compare.csv", "report.html")


def add_publish(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dir", type=Path, metavar="CELL|STUDY", help="a finished cell's folder, or a study's")
    sub.add_argument("--repo-id", required=True, help="OWNER/NAME or NAME; of a study, its cells go to NAME-CELL")
    sub.add_argument("--private", action="store_true", help="new repositories are private")
    sub.add_argument("--revision", help="a branch, made when it is missing (default: main)")
    sub.add_argument(
        "--dry-run", action="store_true", help="show what would be uploaded; needs no token and no network"
    )
    sub.add_argument("--cards", type=Path, metavar="DIR", help="write each card and record to DIR/NAME too")
    sub.add_argument(
        "--teacher-repo",
        action="append",
        metavar="ID",
        help="of one cell: where its teacher is on the Hub (base_model); of an ensemble once for each member, in its order",
    )
    sub.add_argument(
        "--export",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="of one cell: what `hf-lskd export` made of it; its figures go into the card (may be repeated)",
    )
    sub.add_argument(
        "--license", metavar="ID", help="of the weights, such as apache-2.0: one of the Hub's (default: by the data)"
    )
    sub.add_argument("--license-name", metavar="NAME", help="of --license other: what it is called")
    sub.add_argument("--license-link", metavar="URL|FILE", help="of --license other: its address, or its text")


def run_publish(args: Any) -> int:
    from hf_lskd.card_licences import licence, licence_files
    from hf_lskd.hub.publish import check_files, check_repo_id, check_revision, owner, published, shown

    repo_id = check_repo_id(args.repo_id)
    for teacher in args.teacher_repo or ():
        check_repo_id(teacher, "--teacher-repo")
    check_revision(args.revision)
    said = licence(args.license, args.license_name, args.license_link)
    if not args.dry_run:
        user = owner()  # who has no token hears so before anything is read
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    text = licence_files(args.license_link)
    uploads = [replace(one, files={**one.files, **text}) for one in uploads_of(args, repo_id, said)]
    for upload in uploads:
        check_files(upload)
        print(*shown(upload), sep="\n")
        if args.cards is not None:
            write_card(upload, args.cards / upload.repo_id.rpartition("/")[2])
    if args.dry_run:
        return 0
    for address in published(uploads, args.private, args.revision):
        print(address, flush=True)
    return 0


def uploads_of(args: Any, repo_id: str, said: "Mapping[str, str]") -> "list[Upload]":
    """What a cell or a study becomes: one repository, or one for each finished cell and then the study's own."""
    if not args.dir.is_dir():
        raise InputError(f"{args.dir} is no folder", "the folder of a finished cell, or of a study")
    if is_study(args.dir):
        if args.export:
            raise InputError(
                "--export with a study", "--export with one cell's folder", "Publish that cell on its own."
            )
        return study_uploads(args.dir, repo_id, said)
    return [cell_upload(args.dir, repo_id, args.teacher_repo, said, args.export)]


def is_study(folder: Path) -> bool:
    from hf_lskd.record import CELLS, STUDY

    return (folder / STUDY).is_file() and (folder / CELLS).is_dir()


def cell_upload(
    cell: Path,
    repo_id: str,
    teacher_repo: "Sequence[str | None] | None",
    licence: "Mapping[str, str] | None",
    exports: "Sequence[Path]" = (),
) -> "Upload":
    """A cell's model with its record and card. `licence` is what the card says of it (card_licences); None: by the data."""
    from hf_lskd.card import CARD, render
    from hf_lskd.hub.publish import Upload
    from hf_lskd.models.files import shared_files
    from hf_lskd.record import FILE, MODEL
    from hf_lskd.study.card_exports import exports_of
    from hf_lskd.study.card_record import card_record

    record = card_record(cell, repo_id, teacher_repo=teacher_repo)
    record["card"] |= licence or {}
    if exports:
        record["card"]["exports"] = exports_of(cell, exports)
    files: dict[str, Path | bytes] = {CARD: render(record).encode(), FILE: as_json(record)}
    files |= {path.name: path for path in shared_files(cell / MODEL)}
    return Upload(repo_id, files, {key: record[key] for key in ("name", "signature")})


def study_uploads(study: Path, repo_id: str, licence: "Mapping[str, str] | None") -> "list[Upload]":
    """Every finished cell under REPO-CELL, teachers first, then the study's index with its report and tables."""
    from hf_lskd.card import CARD, render_study
    from hf_lskd.hub.publish import Upload, check_repo_id
    from hf_lskd.record import CELLS, FILE, FORMAT, read_record
    from hf_lskd.study.card_record import study_record

    found = {
        p.name: r for p in sorted((study / CELLS).iterdir()) if (r := read_record(p)) and r["status"] == "complete"
    }
    if not found or not (study / "results.csv").is_file():
        raise InputError(f"{study} has no finished cells", "a study that has run", "Run `hf-lskd study` first.")
    names = {
        name: check_repo_id(f"{repo_id}-{name}") for name in sorted(found, key=lambda n: found[n]["role"] != "teacher")
    }
    uploads = []
    for name, target in names.items():
        teacher = found[name].get("teacher")
        taught = [] if teacher is None else teacher.get("members") or [teacher]
        where = [names.get(one["name"]) for one in taught]
        uploads.append(cell_upload(study / CELLS / name, target, where, licence))
    index = {"format": FORMAT, "kind": "study", **study_record(study, repo_id, names), **(licence or {})}
    files: dict[str, Path | bytes] = {CARD: render_study(index).encode(), FILE: as_json(index)}
    files |= {name: study / name for name in INDEX if (study / name).is_file()}
    return [*uploads, Upload(repo_id, files, {key: index[key] for key in ("kind", "name", "recipe_signature")})]


def write_card(upload: "Upload", folder: Path) -> None:
    """The files of an upload that were made for it: card and record."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in upload.files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)


def as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()
