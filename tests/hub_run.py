"""What `test_publish` looks at, in a process of its own: `python -m tests.hub_run FOLDER publish|load`.

The client's endpoint is set before huggingface_hub is imported. `publish` brings a drawn study's cells to the server in
`tests.hub_server`, interrupted and repeated, with tokens and names that must be refused. `load` trains two tiny studies,
publishes them, and loads them in an environment without this package; a script with our trainer pushes, too.
FOLDER/result.json holds what was said, FOLDER/hub what the server holds.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hub_server import NOBODY, READER, WRITER, Server

CELL, OTHER, TEACHER = "student-a0.1-T2-s0", "student-a0.1-T1-s0", "teacher-a0.1-s0"
SHAPE = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}  # fmt: skip
WORDS = {"red": "rot", "house": "Haus", "big": "groß", "tree": "Baum", "two": "zwei", "old": "alt"}

LOADING = """
import json, sys
try:
    import hf_lskd
    sys.exit("hf_lskd is importable here")
except ImportError:
    pass
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
import timm
from PIL import Image
images, pairs, folder = sys.argv[1:]
given = load_file(f"{folder}/given.safetensors")
model = AutoModelForImageClassification.from_pretrained(images)
bare = timm.create_model(f"hf-hub:{images}", pretrained=True).eval()
found = {f"transformers.{k}": v for k, v in model.state_dict().items()} | {f"timm.{k}": v for k, v in bare.state_dict().items()}
picture = Image.new("RGB", (40, 30), (200, 30, 90))
with torch.no_grad():
    found["logits.transformers"] = model(given["pixels"]).logits
    found["logits.timm"] = bare(given["pixels"])
    prepared = AutoImageProcessor.from_pretrained(images)(picture, return_tensors="pt")["pixel_values"]
    found["picture"] = model(prepared).logits.softmax(-1)
said = pipeline("image-classification", model=images)(picture)
translator, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(pairs), AutoTokenizer.from_pretrained(pairs)
batch = tokenizer(["red house", "old tree"], return_tensors="pt", padding=True)
found |= {f"translator.{k}": v for k, v in translator.state_dict().items()}
with torch.no_grad():
    found["logits.translator"] = translator(**batch, decoder_input_ids=given["decoder"]).logits
found["tokens"] = translator.generate(**batch, num_beams=1, max_new_tokens=8)
save_file({k: v.contiguous().clone() for k, v in found.items()}, f"{folder}/found.safetensors")
json.dump({"pipeline": said, "classes": timm.create_model(f"hf-hub:{images}", pretrained=True).num_classes}, open(f"{folder}/said.json", "w"))
"""  # noqa: E501


class Run:
    """Commands, one after the other, and what came of them."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server, self.hub = folder, server, server.hub
        self.said: dict[str, Any] = {}
        self.images, self.pairs = folder / "images", folder / "pairs"

    def main(self, *words: str, token: str | None = WRITER) -> dict[str, Any]:
        """A command of ours in this process: its exit code, output and errors."""
        from hf_lskd.cli import main

        os.environ.pop("HF_TOKEN", None)
        if token is not None:
            os.environ["HF_TOKEN"] = token
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(list(words))
            except SystemExit as end:
                code = int(end.code or 0)
        return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

    def publish(self, name: str, path: Path, repo_id: str, *more: str, token: str | None = WRITER) -> None:
        said = self.main("publish", str(path), "--repo-id", repo_id, *more, token=token)
        found = self.hub.repos.get(repo_id)
        self.said[name] = {
            **said,
            "received": len(self.hub.received),
            "commits": len(found.commits) if found else 0,
            "requests": len(self.hub.requests),
        }

    def killed(self, name: str, path: Path, repo_id: str, request: str, bytes_read: int) -> None:
        """Publish in a child that is killed while the server reads that request."""
        self.hub.stop_at(request, bytes_read)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                self.main("publish", str(path), "--repo-id", repo_id)
            finally:
                os._exit(0)
        stopped = self.hub.stopped.wait(60)
        os.kill(child, 9)
        _, status = os.waitpid(child, 0)
        self.hub.released.set()
        found = self.hub.repos[repo_id]
        self.said[name] = {"stopped": stopped, "by": os.WTERMSIG(status), "received": len(self.hub.received),
                           "commits": len(found.commits)}  # fmt: skip


def drawn(run: Run) -> None:
    """A study whose records and tables are drawn, with weights that nothing was trained to."""
    import numpy as np
    from safetensors.numpy import save_file

    from tests.study_folder import make_study

    make_study(run.images, seeds=1, alphas=(0.1,), temperatures=(1.0, 2.0), targets=12, examples=200, name="tiny")
    (run.images / "report.html").write_text("<p>a page")
    for number, cell in enumerate(sorted((run.images / "cells").iterdir())):
        (cell / "model").mkdir()
        (cell / "model" / "config.json").write_text('{"model_type": "timm_wrapper", "architecture": "test_byobnet"}')
        weights = np.random.default_rng(number).normal(size=7000).astype(np.float32)
        save_file({"w": weights}, cell / "model" / "model.safetensors")


def train(run: Run) -> None:
    """Two tiny studies: pictures in six classes, and a toy language."""
    from tests.tiny_study import changed, dump, values, write_images

    small = changed(values(write_images(run.folder / "data")), "grid.label_smoothing", [0.1])
    recipe = dump(small, run.folder / "images.yaml")
    assert run.main("study", str(recipe), "--output-dir", str(run.images))["code"] == 0
    text = run.folder / "text"
    text.mkdir()
    words = list(WORDS)
    for name, count, shift in (("train", 60, 0), ("validation", 8, 1), ("test", 8, 2)):
        rows = [[words[(i * 5 + shift) % 6], words[(i * i + shift) % 6], words[i % 6]] for i in range(count)]
        lines = [f"{' '.join(row)}\t{' '.join(WORDS[word] for word in row)}\n" for row in rows]
        (text / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    files = {name: str(text / f"{name}.tsv") for name in ("train", "validation", "test")}
    page = {
        "name": "toy", "task": "translation", "eta": None, "projection": None, "decoding": {"beams": 1},
        "data": {"source": "text", "source_lang": "en", "target_lang": "de", "vocab_size": 60, "max_length": 40, **files},
        "training": {"max_tokens": 64, "max_steps": 4, "learning_rate": 0.01},
        "teacher": {"model": "marian", "model_args": SHAPE},
        "students": [{"model": "marian", "model_args": SHAPE}],
        "grid": {"label_smoothing": [0.1], "temperature": [2]},
    }  # fmt: skip
    said = run.main("study", str(dump(page, run.folder / "pairs.yaml")), "--output-dir", str(run.pairs))
    assert said["code"] == 0, said


def interrupted(run: Run) -> None:
    cells = run.images / "cells"
    run.publish("dry", cells / CELL, "me", "--dry-run", token=None)
    run.killed("killed in a file", cells / CELL, "ada/one", "PUT /lfs", 5000)
    run.publish("after the kill", cells / CELL, "ada/one", "--teacher-repo", "ada/the-teacher")
    run.publish("repeated", cells / CELL, "ada/one", "--teacher-repo", "ada/the-teacher")
    run.killed("killed before the commit", cells / OTHER, "ada/two", "POST /api/models/ada/two/commit", 100)
    run.publish("after that kill", cells / OTHER, "ada/two")
    run.hub.stop_at("POST /api/models/ada/three/commit", 100, drop=True)
    run.publish("network lost", cells / TEACHER, "ada/three")
    run.publish("network back", cells / TEACHER, "ada/three", "--license", "mit")
    text = run.folder / "our-licence.txt"
    text.write_text("Do as you like.")
    own = ("--license", "other", "--license-name", "our-own-1.0", "--license-link", str(text))
    run.publish("licence of our own", cells / TEACHER, "ada/four", *own)


def refused(run: Run) -> None:
    cells, cell = run.images / "cells", run.images / "cells" / CELL
    run.publish("no token", cell, "ada/new", token=None)
    run.publish("wrong token", cell, "ada/new", token=NOBODY)
    run.publish("reading token", cell, "ada/new", token=READER)
    run.publish("another's name", cell, "bob/new")
    run.publish("other cell there", cells / OTHER, "ada/one")
    run.hub.create(WRITER, {"name": "foreign"})
    foreign = [{"key": "header", "value": {"summary": "mine"}},
               {"key": "file", "value": {"path": "notes.txt", "content": "aGk=", "encoding": "base64"}}]  # fmt: skip
    run.hub.commit(run.hub.repos["ada/foreign"], "main", foreign)
    run.publish("foreign files there", cell, "ada/foreign")
    for name in ("../up", "ada/../up", "a/b/c", "ada/x.git", "ada/a--b"):
        run.publish(f"name {name}", cell, name)
    run.publish("bad licence", cell, "ada/licence", "--license", "ncsa")  # on our list, but not on this server's
    run.publish("unknown licence", cell, "ada/licence", "--license", "Apache 2.0", token=None)
    (run.folder / "empty").mkdir()
    run.publish("not a cell", run.folder / "empty", "ada/new")
    run.publish("no folder", run.folder / "nowhere", "ada/new")
    damaged(
        run,
        cell,
        "unfinished",
        lambda to: edit(to / "record.json", status="failed", error={"message": "out of memory"}),
    )
    damaged(run, cell, "pickled", lambda to: (to / "model/model.safetensors").rename(to / "model/pytorch_model.bin"))
    damaged(run, cell, "cut", lambda to: os.truncate(to / "model/model.safetensors", 3000))
    damaged(run, cell, "token in a file", lambda to: edit(to / "model/config.json", note=f"by {WRITER}"))


def damaged(run: Run, cell: Path, name: str, damage: Callable[[Path], Any]) -> None:
    to = run.folder / "damaged" / name.replace(" ", "-")
    shutil.copytree(cell, to)
    damage(to)
    run.publish(name, to, "ada/damaged")


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def whole(run: Run) -> None:
    (run.images / "cells" / CELL / "model" / "training_args.bin").write_bytes(
        b"\x80\x05."
    )  # a pickle that must stay at home
    run.publish("study", run.images, "ada/tiny")
    run.publish("study again", run.images, "ada/tiny")
    other = run.folder / "other-study"
    shutil.copytree(run.images, other)
    edit(other / "study.json", training={"max_steps": 5})
    run.publish("another study of that name", other, "ada/tiny")
    run.publish("branch", run.images / "cells" / OTHER, "ada/one", "--revision", "T1")


def round_trip(run: Run) -> None:
    run.publish("images", run.images / "cells" / CELL, "ada/one")
    run.publish("pairs", run.pairs / "cells" / CELL, "ada/pairs", "--private")


def pushed(run: Run) -> None:
    """A script with our trainer that pushes while it trains, and at the end."""
    import torch

    from hf_lskd import DistillationArguments, DistillationTrainer
    from hf_lskd.errors import InputError
    from tests.conftest import Examples, tiny

    os.environ["HF_TOKEN"] = WRITER
    torch.manual_seed(0)
    usual = {"report_to": "none", "disable_tqdm": True, "max_steps": 2, "save_steps": 1, "dataloader_pin_memory": False,
             "eval_strategy": "steps", "eval_steps": 1, "hub_model_id": "ada/pushed", "push_to_hub": True,
             "per_device_train_batch_size": 8, "hub_token": WRITER}  # fmt: skip
    args = DistillationArguments(str(run.folder / "pushed"), kd_temperature=2.0, hub_strategy="every_save", **usual)
    data = {"train_dataset": Examples(16), "eval_dataset": Examples(10, seed=1)}
    trainer = DistillationTrainer(tiny(), args, teacher_model=tiny(seed=1), **data)
    trainer.train()
    trainer.push_to_hub(license="apache-2.0", dataset="random pictures", dataset_tags="random-pictures")
    try:
        late = DistillationArguments(str(run.folder / "late"), hub_strategy="checkpoint", **usual)
        DistillationTrainer(tiny(), late, **data)
    except InputError as error:
        run.said["checkpoints"] = str(error)


def load_without_us(run: Run) -> None:
    """In an environment whose packages are ours without our own."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from hf_lskd import models
    from hf_lskd.models.sequence import load_seq2seq

    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = models.load_trained(str(run.images / "cells" / CELL / "model")).eval()
    translator = load_seq2seq(str(run.pairs / "cells" / CELL / "model")).eval()
    decoder = torch.tensor([[translator.config.decoder_start_token_id, 5, 6]] * 2)
    save_file({"pixels": pixels, "decoder": decoder}, run.folder / "given.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(run.pairs / "cells" / CELL / "model")
    batch = tokenizer(["red house", "old tree"], return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = {
            "logits": model(pixels).logits,
            "translator": translator(**batch, decoder_input_ids=decoder).logits,
            "tokens": translator.generate(**batch, num_beams=1, max_new_tokens=8),
        }
    save_file({name: value.contiguous() for name, value in wanted.items()}, run.folder / "wanted.safetensors")
    python = bare_environment(run.folder / "bare")
    command = [python, "-I", "-c", LOADING, "ada/one", "ada/pairs", str(run.folder)]
    environment = {**os.environ, "HF_TOKEN": WRITER, "HF_HOME": str(run.folder / "elsewhere")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=run.folder)
    run.said["loading"] = {"code": done.returncode, "err": done.stderr[-3000:]}


def bare_environment(folder: Path) -> str:
    """A virtual environment that finds this one's packages, but runs none of its .pth files, as an editable install needs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return str(folder / "bin" / "python")


def keep_hub(run: Run) -> None:
    """What the server holds, as files."""
    for repo in run.hub.repos.values():
        for branch in repo.branches:
            for path, content in run.hub.content(repo.id, branch).items():
                to = run.folder / "hub" / repo.id / branch / path
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(content)
    ever = {path for repo in run.hub.repos.values() for commit in repo.commits.values() for path in commit.files}
    run.said["hub"] = {
        "repos": {r.id: {"private": r.private, "commits": len(r.commits)} for r in run.hub.repos.values()},
        "received": [oid for oid, _ in run.hub.received],
        "ever": sorted(ever),
        "requests": run.hub.requests,
    }


STEPS = {"publish": (drawn, interrupted, refused, whole), "load": (train, round_trip, load_without_us, pushed)}


def main(folder: Path, which: str) -> None:
    with Server() as server:
        mine = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home"),
                "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
        os.environ.update(mine)
        run = Run(folder, server)
        for step in (*STEPS[which], keep_hub):
            started = time.perf_counter()
            step(run)
            print(f"{step.__name__}: {time.perf_counter() - started:.1f} s", flush=True)
    run.publish("no network", run.images / "cells" / CELL, "ada/one")
    (folder / "result.json").write_text(json.dumps(run.said, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
