"""Which classes won and lost, in the report."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from hf_lskd.study.report_classes import class_table
from hf_lskd.study.report_folder import read_study
from hf_lskd.study.report_numbers import Scores
from tests.report.page import SMALL, page_of
from tests.study_folder import make_study


def test_best_and_worst_classes_of_teacher_and_student(tmp_path: Path) -> None:
    names = [f"letter {i}" for i in range(12)]
    folder = make_study(tmp_path, seeds=2, class_names=names, temperatures=(1.0, 64.0), alphas=(0.1,), **SMALL)
    config = folder / "cells" / "teacher-a0.1-s0" / "model" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"id2label": dict(enumerate(names))}))
    table = class_table(Scores(read_study(folder)))
    assert table is not None
    assert list(table.head) == ["class", "teacher, α = 0.1", "α = 0.1, T = 1", "α = 0.1, T = 64"]
    shares = np.empty((3, 12))
    for row, cell in enumerate(("teacher-a0.1", "student-a0.1-T1", "student-a0.1-T64")):
        seeds = [load_file(folder / "cells" / f"{cell}-s{seed}" / "predictions.safetensors") for seed in (0, 1)]
        for c in range(12):
            right = [np.mean(f["prediction"][f["label"] == c] == c) for f in seeds]
            shares[row, c] = 100 * np.mean(right)
    order = np.argsort(-shares.mean(axis=0), kind="stable")
    chosen = [*order[:5], *order[-5:]]
    assert [row[0] for row in table.rows] == [names[c] for c in chosen]
    assert [row[1:] for row in table.rows] == [[f"{v:.0f}" for v in shares[:, c]] for c in chosen]
    assert "Accuracy by class, %" in page_of(folder).text


def test_few_classes_are_shown_once_and_none_without_predictions(tmp_path: Path) -> None:
    few = make_study(tmp_path / "few", seeds=1, class_names=[str(i) for i in range(7)], **SMALL)
    table = class_table(Scores(read_study(few)))
    assert table is not None
    assert sorted(row[0] for row in table.rows) == [f"class {i}" for i in range(7)]
    bare = make_study(tmp_path / "bare", seeds=1, predictions=False, **SMALL)
    assert class_table(Scores(read_study(bare))) is None
