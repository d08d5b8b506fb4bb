"""`hf-lskd convert`: another library's checkpoint as a folder of ours. Arguments and dispatch."""

import argparse
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError, nearest

EXAMPLE = "hf-lskd convert torchvision model_best.pth.tar models/resnet50"
# Which options belong to which kind of source.
OPTIONS = {
    "torchvision": ("architecture", "class_names"),
    "timm": ("architecture", "class_names", "model_args", "output_format"),
    "fairseq": ("data_bin", "bpe_codes", "source_lang", "target_lang", "lower_case"),
}


def add_convert(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("kind", choices=tuple(OPTIONS), help="which library wrote SOURCE")
    sub.add_argument("source", type=Path, metavar="SOURCE", help="its checkpoint, or (timm, fairseq) the folder of it")
    sub.add_argument("target", type=Path, metavar="DIR", help="the folder to make")
    images = sub.add_argument_group("torchvision and timm")
    images.add_argument("--architecture", metavar="NAME", help="where the checkpoint does not say it")
    images.add_argument("--class-names", type=Path, metavar="FILE", help="a name a line, in the order of the classes")
    images.add_argument(
        "--model-args", nargs="+", metavar="KEY=VALUE", help="of timm: other arguments, such as in_chans=1"
    )
    images.add_argument(
        "--output-format", choices=("timm", "torchvision"), help="of timm: torchvision writes DIR/NAME.pth for it"
    )
    texts = sub.add_argument_group("fairseq")
    texts.add_argument("--data-bin", type=Path, metavar="FOLDER", help="with dict.LANG.txt (default: beside SOURCE)")
    texts.add_argument("--bpe-codes", type=Path, metavar="FILE", help="codes of subword-nmt 0.2 or fastBPE")
    texts.add_argument("--source-lang", metavar="LANG", help="default: the checkpoint's")
    texts.add_argument("--target-lang", metavar="LANG", help="default: the checkpoint's")
    texts.add_argument("--lower-case", action="store_true", default=None, help="the text was lower-cased")


def run_convert(args: Any) -> int:
    """Convert and print the check. Raises InputError for options of another kind of source, and for bad input."""
    given = {key: getattr(args, key) for keys in OPTIONS.values() for key in keys if getattr(args, key) is not None}
    for key in given:
        if key not in OPTIONS[args.kind]:
            kinds = " and ".join(kind for kind, keys in OPTIONS.items() if key in keys)
            raise InputError(f"--{key.replace('_', '-')} for {args.kind}", f"it with {kinds} only")
    from hf_lskd.hub.conversion import check_target

    check_target(args.target)
    if not args.source.exists():
        raise InputError(f"{args.source} does not exist", "a checkpoint file, or (timm, fairseq) its folder")
    found = CONVERTERS[args.kind](args.source, args.target, given)
    print(*found.lines(), args.target, sep="\n")
    return 0


def torchvision(source: Path, target: Path, given: dict[str, Any]) -> Any:
    from hf_lskd.hub.from_torchvision import convert_torchvision

    return convert_torchvision(source, target, **with_names(given))


def timm(source: Path, target: Path, given: dict[str, Any]) -> Any:
    from hf_lskd.hub.from_timm import convert_timm

    settings = [setting(word) for word in given.pop("model_args", ())]
    return convert_timm(source, target, model_args=dict(settings), **with_names(given))


def fairseq(source: Path, target: Path, given: dict[str, Any]) -> Any:
    from hf_lskd.hub.from_fairseq import convert_fairseq

    languages = (given.pop("source_lang", None), given.pop("target_lang", None))
    return convert_fairseq(source, target, languages=languages, **given)


CONVERTERS = {"torchvision": torchvision, "timm": timm, "fairseq": fairseq}


def with_names(given: dict[str, Any]) -> dict[str, Any]:
    """The options with the class names read from their file."""
    if "class_names" not in given:
        return given
    path = given["class_names"]
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--class-names {path} cannot be read ({error})", "a text file, a name a line") from error
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise InputError(f"--class-names {path}: empty or repeated names", "a different name in each line")
    return {**given, "class_names": names}


def setting(word: str) -> tuple[str, Any]:
    """`in_chans=1` as (in_chans, 1): YAML on the right. Raises InputError for anything else."""
    import yaml

    key, separator, value = word.partition("=")
    if not separator or not key.isidentifier():
        raise InputError(
            f"--model-args {word}", "KEY=VALUE, such as in_chans=1", nearest(key, ["in_chans", "img_size"])
        )
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--model-args {word}", "a number, a text or a list as value") from error
