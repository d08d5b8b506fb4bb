"""Put the cause of each known trap back, in a scratch copy of the tree, and see the test that is named after it fail.

    python -m tests.mutants [TRAP…]

Each mutant is one replacement in one file. Exit code 1 when a mutant survives, when its test does not run, or when its text is no
longer in the code (`tests/test_mutants.py` says so at once).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    trap: str
    cause: str
    file: str
    old: str
    new: str
    test: str  # FILE::PART: the tests of a file in tests/ whose names have this part


MUTANTS = [
    Mutant("1", "the gradient grows with accumulation: items of the micro-batch only", "distillation.py",
           "return (loss, as_stock_outputs(outputs)) if return_outputs else loss",
           "loss = loss * self.args.gradient_accumulation_steps if self.args.label_smoothing_factor == 0 else loss\n"
           "        return (loss, as_stock_outputs(outputs)) if return_outputs else loss",
           "test_trainer.py::test_trap_01"),
    Mutant("3", "distillation ignores the items of the whole batch", "distillation.py",
           "terms, readings = self._terms(logits, model_inputs, labels, num_items_in_batch,",
           "num_items_in_batch = None if self.teacher is not None else num_items_in_batch\n"
           "        terms, readings = self._terms(logits, model_inputs, labels, num_items_in_batch,",
           "test_trainer.py::test_trap_01"),
    Mutant("4", "KL divided by the number of classes as well", "losses.py",
           "return -(p * finite(log_q)).sum(-1), entropy", "return -(p * finite(log_q)).mean(-1), entropy",
           "test_losses.py::test_trap_04"),
    Mutant("5", "T² missing", "losses.py", "return self.loss_scale * self.temperature**2", "return self.loss_scale",
           "test_losses.py::test_trap_05"),
    Mutant("5", "T² missing in the blocked value alone", "losses_rows.py", "* (mixture.soft_factor / LOG2E)", "/ LOG2E",
           "test_losses_blocked.py::test_trap_04_05_17"),
    Mutant("5", "T in place of T²/T in the blocked gradient", "losses_rows.py",
           "weights.soft * mixture.soft_factor / mixture.student_temperature",
           "weights.soft * mixture.soft_factor", "test_losses_blocked.py::test_trap_04_05_17"),
    Mutant("5", "T² missing in the kernel's value alone", "losses_kernel.py", "soft = soft_factor * soft", "soft = soft",
           "test_losses_triton.py::test_trap_04_05_06"),
    Mutant("digits", "logits are multiplied and rounded where they lie, not from their row's largest", "losses_rows.py",
           "z, alpha=factor, out=out)", "z * factor, out=out)", "test_losses_blocked.py::lie_far_apart"),
    Mutant("digits", "a kernel's sum of logits forgets that the largest has changed", "losses_kernel.py",
           "(at(top) - at(new)) * start + tl.sum(", "tl.sum(", "test_losses_triton.py::test_trap_04_05_06"),
    Mutant("6", "masked rows stay in the kernel", "losses_kernel.py", "counts = tl.load(keep + row) != 0",
           "counts = tl.load(keep + row) >= 0", "test_losses_triton.py::test_trap_04_05_06"),
    Mutant("15", "a float16 gradient is rounded before it is scaled", "losses_blocked.py",
           "ahead = wanted and student.dtype != torch.float16", "ahead = wanted",
           "test_losses_blocked.py::test_trap_15_what_a_float16"),
    Mutant("6", "masked rows stay in the blocked pass", "losses_rows.py", "else labels.ne(asked.ignore_index)",
           "else ~(labels := labels.clamp(min=0)).lt(0)",
           "test_losses_blocked.py::test_trap_06"),
    Mutant("17", "α at every class in place of α/C in the blocked gradient", "losses.py", "return 1 - smoothing, smoothing / classes",
           "return 1 - smoothing, smoothing", "test_losses_blocked.py::test_trap_04_05_17"),
    Mutant("6", "padding stays in the softmax", "losses.py",
           "keep = labels.ne(ignore_index)\n    if len(shape) > 2 and",
           "keep = torch.ones_like(labels, dtype=torch.bool)\n    labels = labels.clamp(min=0)\n    if len(shape) > 2 and",
           "test_losses.py::the_plain_composition_is_the_loop"),
    Mutant("7", "the teacher follows whoever calls train()", "teacher.py", "self.model.eval()", "pass",
           "test_teacher.py::test_trap_07"),
    Mutant("8", "the teacher is a child of the student", "distillation.py",
           "        if self.args.torch_compile:\n            self.teacher.compile()",
           "        self.model.teacher = self.teacher.members[0].model", "test_trainer.py::test_trap_08"),
    Mutant("10", "the teacher stays where it was loaded", "teacher.py", ".eval().to(device)", ".eval()",
           "test_teacher.py::test_trap_10"),
    Mutant("11", "missing weights are drawn at random", "models/loading.py",
           "unloaded = sorted(report.missing | report.mismatched)", "unloaded = []", "test_teacher.py::test_trap_11"),
    Mutant("12", "the teacher sees images normalised for the student", "teacher.py",
           "if self.renormalise is not None:", "if False:", "test_teacher.py::test_trap_12"),
    Mutant("12", "the mean is divided by the wrong deviation", "teacher.py",
           "(data_mean - own_mean) / own_std", "(data_mean - own_mean) / data_std", "test_teacher.py::test_trap_12"),
    Mutant("13", "classes are compared by number only", "teacher.py",
           "if their_names and our_names and their_names != our_names:", "if False:", "test_trainer.py::test_trap_13"),
    Mutant("14", "example ids are dropped with the unused columns", "distillation.py",
           "wanted = [EXAMPLE_ID] if takes_images_by_name(self.model) else [EXAMPLE_ID, IMAGES, \"labels\"]",
           "wanted = [] if takes_images_by_name(self.model) else [IMAGES, \"labels\"]", "test_trainer.py::test_trap_14"),
    Mutant("15", "softmax in half precision", "losses.py",
           "return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()", "return logits",
           "test_losses.py::test_trap_15"),
    Mutant("16", "an argument called temperature", "arguments.py", "kd_temperature: float = field(",
           "temperature: float = 1.0\n    kd_temperature: float = field(", "test_trainer.py::test_trap_16"),
    Mutant("17", "α/(C−1) in place of α/C", "losses.py",
           "return smoothed(nll, log_probs.mean(-1), smoothing)",
           "return smoothed(nll, log_probs.sum(-1) / (log_probs.shape[-1] - 1), smoothing)",
           "test_losses_blocked.py::test_trap_04_05_17"),
    Mutant("19", "the order of an epoch is drawn from the global generator", "data/dataset.py",
           'generator = torch.Generator().manual_seed(seed_of("order", self.seed, epoch))', "generator = None",
           "test_resume.py::test_trap_19"),
    Mutant("22", "weight rows of the classes with the first biases", "analysis/projection.py",
           "spanned = torch.cat([rows, column[:, None]], dim=1)[chosen]",
           "spanned = torch.cat([rows[chosen], column[: len(chosen), None]], dim=1)", "test_projection.py::test_trap_22"),
    Mutant("23", "the record leaves out the recipe", "study/cell.py", '"recipe": recipe.to_dict(),', "",
           "study/test_study_records.py::test_trap_23"),
    Mutant("25", "the teacher is left to the student's compilation", "distillation.py",
           "self.teacher.compile(", "str(", "test_trainer.py::test_trap_25"),
    Mutant("28", "augmentation draws from whatever the generators hold", "data/dataset.py",
           "seed_generators(self.data_seed, epoch, index)", "pass", "test_data_dataset.py::test_trap_28"),
    Mutant("29", "the teacher is handed over from memory", "tasks/image_classification.py",
           "teacher_model=prepared or as_teacher_model(teachers)",
           "teacher_model=prepared or (models.load_trained(str(teachers[0])) if teachers else None)",
           "study/test_study.py::test_trap_29_a_teacher"),
    Mutant("30", "a mean over micro-batches", "distillation.py",
           "self.loss_is_scaled_for_ga = True if num_items_in_batch is not None else None",
           "num_items_in_batch = None\n        self.loss_is_scaled_for_ga = None\n"
           "        terms, readings = self._terms(logits, model_inputs, labels, None, with_teacher=not evaluating)",
           "test_trainer.py::test_trap_30"),
    Mutant("31", "the teacher's α smooths the student too", "tasks/task.py",
           '"label_smoothing_factor": cell.student_label_smoothing,', '"label_smoothing_factor": cell.label_smoothing,',
           "study/test_study_records.py::test_trap_31"),
    Mutant("32", "the teacher runs in inference mode", "teacher.py", "@torch.no_grad()\n    def outputs",
           "@torch.inference_mode()\n    def outputs",
           "test_trainer.py::test_trap_32"),
    Mutant("33", "the stock smoother is set up for a module without config", "stock.py",
           "self.args = args if not hasattr(model, \"config\") else None", "self.args = None", "test_trainer.py::test_trap_33"),
    # ---- translation
    Mutant("1", "translators keep their own loss, a mean of each micro-batch", "distillation.py",
           'bool(getattr(config, "is_encoder_decoder", False)))', "False)", "test_seq2seq.py::test_trap_01_a_translators"),
    Mutant("2", "the shift fills the labels' own −100", "models/sequence.py",
           "    shifted = labels.new_empty(labels.shape)\n",
           "    labels.masked_fill_(labels.eq(ignore_index), pad)\n    shifted = labels.new_empty(labels.shape)\n",
           "test_seq2seq_tokens.py::test_trap_02"),
    Mutant("3", "each process divides by its own items", "distillation.py",
           'items = self.accelerator.reduce(items, "sum")', "pass", "test_seq2seq_processes.py::test_trap_03_a_translators"),
    Mutant("5", "T² on tokens only without top-k", "losses.py",
           "return self.loss_scale * self.temperature**2",
           "return self.loss_scale * (self.temperature**2 if self.top_k is None else 1)", "test_seq2seq.py::test_trap_05_token"),
    Mutant("6", "padded tokens stay in the softmax", "losses_rows.py", "else labels.ne(asked.ignore_index)",
           "else ~(labels := labels.clamp(min=0)).lt(0)",
           "test_seq2seq.py::test_trap_06_pad_columns"),
    Mutant("7", "a translation teacher follows whoever calls train()", "seq2seq.py",
           "        self.stay_in_eval()\n", "", "test_seq2seq.py::test_trap_07_a_translation"),
    Mutant("8", "the translation teacher is a child of the student", "distillation.py",
           "        if self.args.torch_compile:\n            self.teacher.compile()",
           "        self.model.teacher = self.teacher.members[0].model", "test_seq2seq.py::test_trap_08_a_translators"),
    Mutant("9", "the loss is taken on the unwrapped model", "distillation.py",
           "outputs = forward(model, self.student_inputs",
           "outputs = forward(self.accelerator.unwrap_model(model), self.student_inputs",
           "test_seq2seq_processes.py::test_trap_09_a_translators"),
    Mutant("13", "token maps are compared by number only", "seq2seq.py",
           "    if theirs == ours:\n        return", "    if len(theirs) == len(ours):\n        return",
           "test_seq2seq_tokens.py::test_trap_13_differing_token"),
    Mutant("13", "a teacher's missing rows weigh as logits of 0", "seq2seq.py", "value=-torch.inf", "value=0.0",
           "test_seq2seq_tokens.py::test_trap_13_rows"),
    Mutant("16", "the model's sampling temperature is taken for T", "distillation.py",
           'temperature = getattr(args, "kd_temperature", 1.0)',
           'temperature = self.teacher.members[0].model.generation_config.temperature or args.kd_temperature',
           "test_seq2seq.py::test_trap_16_the_distillation_temperature_is_not"),
    Mutant("17", "α/(C−1) over the vocabulary", "losses.py", "return smoothed(nll, log_probs.mean(-1), smoothing)",
           "return smoothed(nll, log_probs.sum(-1) / (log_probs.shape[-1] - 1), smoothing)",
           "test_seq2seq.py::test_trap_17_a_translators"),
    Mutant("17", "α/(C−1) in the blocked value", "losses_rows.py", 'mean = s["logits"] * (own / classes) - log_total',
           'mean = (s["logits"] * own - classes * log_total) / (classes - 1)', "test_losses_blocked.py::test_trap_04_05_17"),
    Mutant("18", "predictions keep −100", "trainer.py",
           "np.where(predictions == IGNORE_INDEX, pad, predictions)", "predictions", "test_seq2seq.py::test_trap_18_metrics"),
    Mutant("19", "token batches are drawn from no seed", "data/token_batches.py",
           "draw = np.random.default_rng((self.seed, epoch))", "draw = np.random.default_rng()",
           "test_seq2seq_processes.py::test_trap_19_token_batches"),
    Mutant("26", "the padded tail is gathered too", "trainer.py",
           "self.gather_function = self.accelerator.gather_for_metrics", "self.gather_function = self.accelerator.gather",
           "test_seq2seq_processes.py::test_trap_26_predictions"),
    Mutant("27", "nobody counts the processes that came up", "study/bench.py",
           "if found != launched or asked not in (None, found):", "if False:", "test_launch.py::test_trap_27_one_process"),
    Mutant("S1", "near and far tokens change places", "analysis/semantics.py",
           "first, last = order[:similar], order[-dissimilar:]", "last, first = order[:dissimilar], order[-similar:]",
           "test_semantics.py::test_tokens_are_near_and_far"),
    Mutant("g", "the classes outside the top k are left out of g", "analysis/gradient.py",
           "+ (classes - p.shape[1]) / classes**2", "+ 0", "test_gradient.py::test_with_top_k_it_is"),
    Mutant("31", "the student's own smoothing smooths the teacher's targets", "distillation.py",
           "teacher_logits = self.teacher_logits(inputs, labels, temperature) if taught else None",
           "teacher_logits = self.teacher_logits(inputs, labels, temperature) if taught else None\n"
           "        if taught:\n"
           "            p, a = teacher_logits.softmax(-1), args.label_smoothing_factor\n"
           "            teacher_logits = ((1 - a) * p + a / p.shape[-1]).log()",
           "test_seq2seq.py::test_trap_31_a_translators"),
    Mutant("claims", "who finds a cell taken makes it too", "study/claims.py",
           "(BlockingIOError, PermissionError):\n        return False", "(BlockingIOError, PermissionError):\n        pass",
           "test_claims.py::three_processes_started"),
    Mutant("claims", "a removed lock file counts as a lock", "study/claims.py",
           "        if still_there(file, path):\n            return file", "        return file",
           "test_claims.py::a_lock_file_that_its_owner"),
    Mutant("claims", "nobody waits for what others make", "study/runner.py", "while len(records) < len(planned):",
           "for _ in range(1):", "test_claims.py::three_processes_started"),
    Mutant("claims", "what another process saw fail is tried again", "study/runner.py",
           "stamp is not None and stamp != earlier", "False", "test_claims.py::tried_by_one_process_only"),
    Mutant("20", "one process splits its batch over all GPUs", "study/batch.py",
           "args.world_size != processes or share != 1", "False", "test_launch.py::test_trap_20"),
    Mutant("20", "cells of two processes pass for cells of one", "study/bench.py",
           '"processes": bench.processes', '"processes": world_size()', "test_launch.py::refuses_the_cells_of_two_processes"),
    Mutant("27", "a configuration that starts strangers is taken", "study/launch.py",
           'found.num_processes > 1 and (kind in ("NO", "MULTI_CPU") or found.use_cpu)', "False",
           "test_launch.py::starts_strangers"),
    Mutant("19", "a checkpoint at an epoch's last step misses its evaluation", "clock.py",
           "if not float(state.epoch).is_integer():", "if True:", "test_clock.py::from_any_of_them_is_the_whole_run"),
    Mutant("19", "a checkpoint after the last step, which a resumed run goes past", "clock.py",
           " or state.global_step >= state.max_steps", "", "test_clock.py::none_is_written_after_the_last_step"),
    Mutant("21", "students do not wait for their teacher", "study/slurm.py",
           "if array.after:", "if False:", "test_slurm.py::students_follow_their_own_teacher"),
    Mutant("21", "a job that is still queued is submitted again", "study/slurm.py",
           "if jobs[-1] in now}", "if False}", "test_slurm.py::students_follow_their_own_teacher"),
    Mutant("lockstep", "students draw from one generator in turn", "study/strands.py",
           "            self._world.restore()", "            pass",
           "test_lockstep.py::leave_the_checkpoints_that_each_leaves_alone"),
    Mutant("lockstep", "one student's no_grad is another's", "study/strands.py",
           "torch.set_grad_enabled(self.records_gradients)", "pass", "test_lockstep.py::keep_what_torch_records"),
    Mutant("lockstep", "a teacher's answer to another batch", "shared.py",
           "key = (dtype, *((name, id(value)) for name, value in sorted(inputs.items())))", "key = (dtype,)",
           "test_lockstep.py::a_shared_teacher_answers"),
    Mutant("lockstep", "the next batch for whoever comes next", "shared.py",
           "        if at not in self.kept:\n", "        if True:\n", "test_lockstep.py::read_and_a_teacher_run_once"),
    Mutant("lockstep", "students keep checkpoints by clocks of their own", "study/lockstep.py",
           "callback.decided = self.together.decided", "pass", "test_lockstep_seeds.py::whose_clocks_differ"),
    Mutant("lockstep", "seeds of other orders are put together", "tasks/task.py",
           '            "data_seed": self.data_seed(cell),\n            "training"', '            "training"',
           "test_lockstep_seeds.py::other_orders_or_other_teachers"),
    Mutant("14", "an example's logits without looking at what it says", "teacher_cache.py",
           "labels[row, :length], *said)", "*said)", "test_teacher_cache.py::padding_is_no_part"),
    Mutant("14", "a cache of the first version alone", "caching.py",
           "range(versions or 1)", "range(1)", "test_stored_versions.py::each_epoch_on_stored_versions"),
    Mutant("28", "versions go on for ever", "data/dataset.py",
           "epoch % self.augmentation_versions", "epoch", "test_data_dataset.py::of_k_versions_epoch_e"),
    Mutant("14", "a damaged file is read", "teacher_cache.py",
           "file_checksum(folder / name) != checksum", "False", "test_teacher_cache.py::a_damaged_file_is_found_out"),
]  # fmt: skip


def scratch_copy(folder: Path) -> Path:
    """The package, its tests and all that these read, without anything built."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("hf_lskd", "bench", "docs", "tests", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def mutated(mutant: Mutant, package: Path) -> str:
    """The mutant's file with its cause put back. ValueError when the text to replace does not stand there exactly once."""
    code = (package / mutant.file).read_text(encoding="utf-8")
    if (found := code.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.file} has the text {mutant.old!r} {found} times")
    return code.replace(mutant.old, mutant.new)


def run_test(tree: Path, test: str) -> str:
    """What became of the selected tests in a tree: "passed", "failed: NAME" of the first one that failed, or "not run: …", which is
    whatever else pytest ended with: tests that could not be collected or set up, none at all, a crash."""
    file, part = test.split("::")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", part, f"tests/{file}"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if found.returncode == 0:
        return "passed"
    summary = [line.split(" - ")[0] for line in found.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    failed = [line.split("::")[-1] for line in summary if line.startswith("FAILED ") and part in line]
    if found.returncode == 1 and failed and len(failed) == len(summary):
        return f"failed: {failed[0]}"
    return "; ".join([f"not run: pytest ended with {found.returncode}", *summary])


def try_mutant(mutant: Mutant) -> str:
    """ "killed by NAME", "SURVIVED", "NOT RUN" with the reason, or "STALE" when the text to replace is gone."""
    with tempfile.TemporaryDirectory() as folder:
        tree = scratch_copy(Path(folder))
        try:
            code = mutated(mutant, tree / "hf_lskd")
        except ValueError as error:
            return f"STALE: {error}"
        (tree / "hf_lskd" / mutant.file).write_text(code, encoding="utf-8")
        outcome, _, more = run_test(tree, mutant.test).partition(": ")
    return {"passed": "SURVIVED", "failed": f"killed by {more}"}.get(outcome, f"NOT RUN: {more}")


@cache
def passes_unpatched(test: str) -> bool:
    """Whether the selected tests pass in a scratch copy that nothing was changed in."""
    with tempfile.TemporaryDirectory() as folder:
        return run_test(scratch_copy(Path(folder)), test) == "passed"


def main(traps: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not traps or mutant.trap in traps]
    results = []
    for mutant in chosen:
        results.append(try_mutant(mutant) if passes_unpatched(mutant.test) else "BROKEN: its test fails without it too")
        print(f"| {mutant.trap} | {mutant.cause} | {results[-1]} |", flush=True)
    return 0 if all(result.startswith("killed") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
