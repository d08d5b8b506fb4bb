"""A study as jobs: what is submitted, what is refused, and the whole of it on a real cluster of two nodes."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from hf_lskd.cli import main
from hf_lskd.errors import InputError
from hf_lskd.recipe import load_recipe
from hf_lskd.study import slurm
from hf_lskd.study.launch import read_config
from hf_lskd.study.slurm_script import read_template, script
from tests.launch_files import CPU_2, ROOT, page, record_of, until, weights_of
from tests.slurm_cluster import ask, cluster  # noqa: F401  # a fixture
from tests.tiny_study import NAMES, bytes_of


def begun(study: Path, name: str) -> list[str]:
    """When and where each attempt at a cell began, from its log."""
    log = study / "logs" / f"{name}.log"
    return re.findall(r"==== (.* begins .*)", log.read_text())


def ends(study: Path, name: str) -> str:
    """When the cell's last attempt ended, from its log."""
    return re.findall(r"==== (.*) ends ", (study / "logs" / f"{name}.log").read_text())[-1]


def half_trained(study: Path, name: str) -> bool:
    return any((study / "cells" / f".{name}.partial").glob("trainer/checkpoint-*/trainer_state.json"))


@pytest.mark.slow
def test_jobs_that_are_requeued_and_cancelled_end_as_the_inline_study(
    cluster: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster))
    monkeypatch.setattr(slurm, "LOOK", 0.5)
    monkeypatch.setattr(slurm, "ASK", 2.0)
    recipe, study = page(tmp_path, training__max_steps=400, training__save_minutes=0.005), tmp_path / "jobs"
    command = ["study", str(recipe), "--output-dir", str(study), "--launcher", "slurm", "--slurm-limit", "2"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "submitted: 2 teachers, 4 students; queued or running already: 0; finished: 0 of 6 cells" in said
    jobs = slurm.submitted_jobs(study)

    until(lambda: half_trained(study, "teacher-a0-s0"))
    assert ask(cluster, "scontrol", "requeue", jobs["teacher-a0-s0"][0]) == ""
    until(lambda: half_trained(study, "teacher-a0.1-s0"))
    assert ask(cluster, "scancel", jobs["teacher-a0.1-s0"][0]) == ""
    gone = {jobs[name][0] for name in NAMES[3:]}
    until(lambda: not gone & set(ask(cluster, "squeue", "--noheader", "--array", "--format=%i").split()))

    assert main([*command, "--wait"]) == 0
    said = capsys.readouterr().out
    assert "submitted: 1 teachers, 2 students; queued or running already: 3; finished: 0 of 6 cells" in said
    assert "submitted again, since their jobs ended before them: teacher-a0.1-s0, " in said

    requeued, again = begun(study, "teacher-a0-s0"), begun(study, "teacher-a0.1-s0")
    assert "requeued 0 times" in requeued[0]
    assert "requeued 1 times" in requeued[1]
    assert [jobs["teacher-a0.1-s0"][0] in again[0], slurm.submitted_jobs(study)["teacher-a0.1-s0"][1] in again[1]] == [
        True
    ] * 2
    for name in ("teacher-a0-s0", "teacher-a0.1-s0"):
        assert re.search(r"goes on from checkpoint-\d+", (study / "logs" / f"{name}.log").read_text())
    nodes = {re.search(r"node (n\d)", begun(study, name)[0])[1] for name in NAMES}  # type: ignore[index]
    assert nodes == {"n1", "n2"}
    for name in NAMES:
        if name.startswith("student"):
            teacher = name.replace("student", "teacher").replace("-T1", "").replace("-T2", "")
            assert begun(study, name)[-1][:19] >= ends(study, teacher)[:19]

    inline = tmp_path / "inline"
    assert main(["study", str(recipe), "--output-dir", str(inline), "--jobs", "1"]) == 0
    assert bytes_of(study, "results.csv", "eta.csv") == bytes_of(inline, "results.csv", "eta.csv")
    for name in NAMES:
        one, other = record_of(study, name), record_of(inline, name)
        for key in ("signature", "metrics", "best", "kd_loss_scale_value"):
            assert one[key] == other[key], (name, key)
        mine, theirs = weights_of(study, name), weights_of(inline, name)
        assert all(torch.equal(weight, theirs[key]) for key, weight in mine.items())
    capsys.readouterr()
    assert main(command) == 0  # all is made: nothing is submitted
    assert "submitted" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_cell_over_two_machines_is_one_process_group_on_two_nodes(
    cluster: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for name, value in (("SLURM_CONF", cluster), ("ACCELERATE_USE_CPU", "true"), ("GLOO_SOCKET_IFNAME", "lo")):
        monkeypatch.setenv(name, str(value))
    config = tmp_path / "two_machines.yaml"
    page_of = CPU_2.with_name("two_machines.yaml").read_text().replace("num_processes: 16", "num_processes: 2")
    config.write_text(page_of)
    recipe, study = page(tmp_path, grid__label_smoothing=[0.0], grid__temperature=[1]), tmp_path / "jobs"
    words = ["--launcher", "slurm", "--accelerate-config", str(config), "--wait"]
    assert main(["study", str(recipe), "--output-dir", str(study), *words]) == 0, logs_of(study)
    for name in NAMES[:2]:
        assert record_of(study, name)["hardware"]["world_size"] == 2
        assert "2 processes x 16 examples x 1 accumulated = 32 a step" in (study / "logs" / f"{name}.log").read_text()


def logs_of(study: Path) -> str:
    return "\n".join(log.read_text()[-2000:] for log in sorted((study / "logs").glob("*.log")))


# ---- What is submitted, with commands that stand in for the cluster's


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sbatch and squeue on the path: sbatch notes what it is given and numbers its jobs, squeue says what stands
    in `queue`. The real ones are tried above."""
    folder = tmp_path / "bin"
    folder.mkdir()
    number = (
        'n=$(($(cat "$D/n" 2>/dev/null || echo 10) + 1)); echo $n > "$D/n"; echo "$@" >> "$D/calls"; echo "$n;here"'
    )
    for name, body in (("sbatch", number), ("squeue", 'cat "$D/queue" 2>/dev/null || true')):
        (folder / name).write_text(f"#!/bin/sh\nD={folder}\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def submit(tmp_path: Path, *words: str, **settings: object) -> int:
    return main(
        [
            "study",
            str(page(tmp_path, **settings)),
            "--output-dir",
            str(tmp_path / "study"),
            "--launcher",
            "slurm",
            *words,
        ]
    )


def calls(commands: Path) -> list[str]:
    """What sbatch was called with, without where it writes and the script's folder."""
    lines = (commands / "calls").read_text().splitlines()
    return [
        re.sub(r"--output=\S+ ?|\S+/(?=\S+\.sh)|--(requeue|parsable|open-mode=append) ", "", line) for line in lines
    ]


def test_students_follow_their_own_teacher_and_nothing_is_submitted_twice(
    commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert submit(tmp_path, "--slurm-limit", "3") == 0
    after = "--kill-on-invalid-dep=yes"
    assert calls(commands) == [
        "--array=0-1%3 --job-name=teachers teachers.sh",
        f"--array=0-1%3 --job-name=students-of-teacher-a0-s0 --dependency=afterok:11_0 {after} students-of-teacher-a0-s0.sh",
        f"--array=0-1%3 --job-name=students-of-teacher-a0.1-s0 --dependency=afterok:11_1 {after} "
        "students-of-teacher-a0.1-s0.sh",
    ]
    (commands / "calls").unlink()
    (commands / "queue").write_text("11_0\n12_0\n12_1\n13_1\n")  # the second teacher and one of its students are gone
    capsys.readouterr()
    assert submit(tmp_path) == 0
    assert calls(commands) == [
        "--array=0-0 --job-name=teachers teachers.sh",
        f"--array=0-0 --job-name=students-of-teacher-a0.1-s0 --dependency=afterok:14_0 {after} students-of-teacher-a0.1-s0.sh",
    ]
    assert "submitted: 1 teachers, 1 students; queued or running already: 4; finished: 0" in capsys.readouterr().out
    (commands / "calls").unlink()
    (commands / "queue").write_text("11_0\n12_0\n13_1\n14_0\n15_0\n")
    assert submit(tmp_path) == 0  # a student of a teacher that is still at work
    (call,) = calls(commands)
    assert "--dependency=afterok:11_0" in call
    assert "student-a0-T2-s0" in (tmp_path / "study" / "slurm" / "students-of-teacher-a0-s0.sh").read_text()


def test_an_ensembles_students_follow_all_of_its_members(commands: Path, tmp_path: Path) -> None:
    assert submit(tmp_path, grid__label_smoothing=[0.0], teacher__ensemble=[0, 1], grid__seed=[0, 1]) == 0
    teachers, *students = calls(commands)
    assert teachers == "--array=0-1 --job-name=teachers teachers.sh"
    assert students
    assert all("--dependency=afterok:11_0:11_1 --kill-on-invalid-dep=yes" in call for call in students)


def test_what_is_finished_is_neither_submitted_nor_waited_for(
    commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = {"grid__label_smoothing": [0.0], "grid__temperature": [1]}
    assert main(["study", str(page(tmp_path, **settings)), "--output-dir", str(tmp_path / "study"), "--jobs", "1"]) == 0
    assert submit(tmp_path, "--wait", **settings) == 0  # all of it
    assert not (commands / "calls").exists()
    assert submit(tmp_path, grid__label_smoothing=[0.0]) == 0  # a student more
    assert calls(commands) == ["--array=0-0 --job-name=students-of-teacher-a0-s0 students-of-teacher-a0-s0.sh"]


def test_jobs_that_are_gone_end_the_waiting_with_a_record(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(slurm, "LOOK", 0.01)
    monkeypatch.setattr(slurm, "ASK", 0.0)
    assert submit(tmp_path, "--wait") == 1
    assert {record_of(tmp_path / "study", name)["error"]["type"] for name in NAMES} == {"JobLostError"}
    assert (tmp_path / "study" / "results.csv").is_file()
    assert "run the study again" in capsys.readouterr().err


def test_cells_whose_jobs_were_just_ending_are_submitted_again_and_not_lost(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """scancel and at once the same command with --wait: squeue shows the elements twice more, then no longer."""
    monkeypatch.setattr(slurm, "LOOK", 0.01)
    monkeypatch.setattr(slurm, "ASK", 0.0)
    assert submit(tmp_path) == 0
    first = slurm.submitted_jobs(tmp_path / "study")
    (commands / "calls").unlink()
    (commands / "queue").write_text("\n".join(jobs[0] for jobs in first.values()))
    shown = 'c=$(($(cat "$D/c" 2>/dev/null || echo 0) + 1)); echo $c > "$D/c"; [ $c -gt 2 ] || cat "$D/queue"'
    (commands / "squeue").write_text(f"#!/bin/sh\nD={commands}\n{shown}\n")
    capsys.readouterr()
    assert submit(tmp_path, "--wait") == 1  # nothing makes the cells here: what was submitted now is lost
    said = capsys.readouterr().out
    assert "queued or running already: 6" in said
    assert "submitted: 2 teachers, 4 students; queued or running already: 0" in said
    assert len(calls(commands)) == 3  # once, not for ever
    assert {record_of(tmp_path / "study", name)["error"]["type"] for name in NAMES} == {"JobLostError"}


def test_students_of_a_teacher_that_failed_meanwhile_are_not_submitted_again(tmp_path: Path) -> None:
    recipe = load_recipe(page(tmp_path))
    planned = slurm.cells(recipe)
    earlier: dict = dict.fromkeys(planned)
    assert slurm.cut_short(recipe, tmp_path, [], earlier) == planned
    assert slurm.cut_short(recipe, tmp_path, planned[:2], earlier) == planned[3:]  # a teacher of ours, and a student
    assert (
        slurm.cut_short(recipe, tmp_path, planned[1:2], earlier) == planned
    )  # a student of ours behind a teacher that was ending
    assert slurm.cut_short(recipe, tmp_path, planned[:3], earlier) == planned[3:]
    slurm.fail_cell(recipe, planned[0], tmp_path / "cells" / planned[0].name, RuntimeError("out of memory"))
    assert slurm.cut_short(recipe, tmp_path, [], earlier) == planned[3:]
    assert slurm.cut_short(recipe, tmp_path, planned[1:2], earlier) == planned[3:]


def test_what_sbatch_refuses_is_said_in_its_own_words(
    commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (commands / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n")
    assert submit(tmp_path) == 2
    assert "invalid partition specified: gpu" in capsys.readouterr().err
    assert slurm.submitted_jobs(tmp_path / "study") == {}


def test_without_a_cluster_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit(tmp_path) == 2
    assert re.search(r"no squeue on this machine.*login node", capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "study").exists()


GOOD = "#!/bin/bash\n#SBATCH --time=1\n@CHOOSE_CELL@\n@MAKE_CELL@\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("@CHOOSE_CELL@\n", ""), "without @CHOOSE_CELL@"),
        (GOOD.replace("@MAKE_CELL@", "# @MAKE_CELL@"), "without @MAKE_CELL@"),
        (GOOD.removeprefix("#!/bin/bash\n"), "does not begin with #!"),
        ("", "does not begin with #!"),
        (GOOD + "#SBATCH --partition=gpu\n", "`#SBATCH --partition=gpu` below a command"),
    ],
)
def test_a_template_that_could_not_work_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.sh").write_text(text)
    with pytest.raises(InputError, match=message):
        read_template(tmp_path / "t.sh")


def test_a_template_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert submit(tmp_path, "--slurm-template", str(tmp_path / "none.sh")) == 2
    assert "none.sh" in capsys.readouterr().err
    assert submit(tmp_path, "--slurm-limit", "0") == 2


@pytest.mark.parametrize("template", [None, ROOT / "recipes" / "slurm" / "gpu.sh"], ids=["default", "gpu"])
@pytest.mark.parametrize("config", [None, "cpu_2", "two_machines"])
def test_scripts_are_bash_and_make_the_cell_of_their_element(
    config: str | None, template: Path | None, tmp_path: Path
) -> None:
    """Run by bash, with programs in the place of Python and srun that say how they are called."""
    folder = tmp_path / "a study's folder"
    (folder / "logs").mkdir(parents=True)
    (tmp_path / "python").write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n')
    (tmp_path / "srun").write_text('#!/bin/sh\necho "srun $1 $2 $3"; shift 3; SLURM_NODEID=1 exec "$@"\n')
    for name in ("python", "srun"):
        (tmp_path / name).chmod(0o755)
    cells = slurm.cells(load_recipe(page(tmp_path)))[:2]
    found = None if config is None else read_config(CPU_2.with_name(f"{config}.yaml"))
    text = script(read_template(template), folder, cells, found)
    path = tmp_path / "job.sh"
    path.write_text(text.replace("HF_LSKD_PYTHON=", f"HF_LSKD_PYTHON={tmp_path}/python #", 1))
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "20007"}
    done = subprocess.run(["bash", str(path)], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    said = (folder / "logs" / f"{cells[1].name}.log").read_text()
    processes = 1 if found is None else found.processes
    words = ["-m", "hf_lskd.study.launched", str(folder), cells[1].name, "--processes", str(processes)]
    assert said.split("\n")[-len(words) - 1 : -1] == [f"<{word}>" for word in words]
    if found is not None:
        assert f"<--config_file>\n<{found.path}>\n<--main_process_port>" in said
    if config == "two_machines":
        assert said.startswith("srun --kill-on-bad-exit=1 --nodes=2 --ntasks-per-node=1\n")
        assert "<--main_process_port>\n<20007>\n<--machine_rank>\n<1>\n<--main_process_ip>\n" in said


def test_a_jobs_recipe_saves_by_the_clock_unless_it_says_how(tmp_path: Path) -> None:
    assert slurm.by_clock(load_recipe(page(tmp_path))).training["save_minutes"] == 10
    assert slurm.by_clock(load_recipe(page(tmp_path, training__save_minutes=3))).training["save_minutes"] == 3
    never = page(tmp_path, training__save_minutes=None)
    assert slurm.by_clock(load_recipe(never)).training["save_minutes"] is None
