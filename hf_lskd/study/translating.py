"""`hf-lskd translate`: a file of sentences through a finished model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError
from hf_lskd.generation import read_sources, translate_corpus
from hf_lskd.models.sequence import check_tokenizer, load_trained_seq2seq
from hf_lskd.recipe import DecodingSpec, load_recipe
from hf_lskd.record import CELLS, FILE, MODEL, Cell, model_folder, read_record
from hf_lskd.translation_files import check_suffix


def translate_file(args: Any) -> int:
    """Translate `args.input` into `args.output` with a model, a finished cell, or a recipe's. Returns the number of sentences.

    Raises InputError for files that cannot be read, a model that is not there, and options out of range.
    """
    import torch

    check_suffix(args.output)
    if args.output.is_dir() or args.output.resolve() == args.input.resolve():
        what = "is a folder" if args.output.is_dir() else "is the input, which would be lost"
        raise InputError(f"--output {args.output} {what}", "another file")
    folder, decoding = model_of(args)
    sources = read_sources(args.input)
    model = load_trained_seq2seq(folder)
    tokenizer = tokenizer_of(folder)
    check_tokenizer(tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = {
        key: getattr(args, key) for key in ("beams", "length_penalty", "max_length") if getattr(args, key) is not None
    }
    for key in ("beams", "max_length"):
        if key in given and given[key] < 1:
            raise InputError(f"--{key.replace('_', '-')} {given[key]}", "a whole number from 1")
    options = {**vars(decoding), **given}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    translate_corpus(model.to(device), tokenizer, sources, args.output, max_tokens=args.max_tokens, **options)
    return len(sources)


def model_of(args: Any) -> tuple[str, DecodingSpec]:
    """The folder or name of the model that `args.model` means, and how it is to decode."""
    path = Path(args.model)
    if path.suffix in (".yaml", ".yml"):
        recipe = load_recipe(path)
        if recipe.task != "translation":
            raise InputError(f"{path} is a recipe of {recipe.task}", "a recipe of translation, or a model")
        study = args.study or Path("runs") / recipe.name
        cell = args.cell or Cell("teacher", recipe.grid.label_smoothing[0], recipe.grid.seed[0]).name
        return str(finished_model(study, cell)), recipe.decoding or DecodingSpec()
    record = read_record(path) if path.is_dir() else None
    decoding = (record or {}).get("recipe", {}).get("decoding") or {}
    return str(model_folder(path)), DecodingSpec(**decoding)


def finished_model(study: Path, cell: str) -> Path:
    """The model of a finished cell of a study. Raises InputError with the cells that there are."""
    folder = study / CELLS / cell
    record = read_record(folder)
    if record is None or record["status"] != "complete":
        there = sorted(path.parent.name for path in (study / CELLS).glob(f"*/{FILE}"))
        raise InputError(
            f"{folder} is no finished cell",
            f"--cell, one of: {', '.join(there)}" if there else "a study with finished cells",
            "Run `hf-lskd study` first, or say where it is by --study.",
        )
    return folder / MODEL


def tokenizer_of(folder: str) -> Any:
    """The tokenizer saved beside a model. Raises InputError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        first: Sequence[str] = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{folder} has no tokenizer ({first[0]})", "a model saved with its tokenizer") from error
