"""Trainer.create_model_card and push_to_hub of our trainers: the card of `hf_lskd.card`, and no pickle on the Hub."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress, hf_api

from hf_lskd import card
from hf_lskd.card_licences import LICENSE, licence, licence_files
from hf_lskd.errors import InputError
from hf_lskd.models.files import SHARED
from hf_lskd.record import FILE, FORMAT, hardware, read_record, versions, without_times, write_json

if TYPE_CHECKING:

    class Stock(Trainer):
        args: Any
        model: Any
        teacher: Any

else:
    Stock = object

UPLOADED = [*SHARED, card.CARD, FILE, LICENSE]
WORDS = ("license", "license_name", "license_link")  # arguments of a card


class PushMixin(Stock):
    """What our trainers put on the Hub: safetensors, configurations, what prepares input, `record.json` and its card.

    The stock trainer uploads its whole output folder, `training_args.bin` with it, which is a pickle.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository. Raises InputError for a `hub_strategy` that would upload optimizer states, which are pickles."""
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            received = f"hub_strategy={self.args.hub_strategy.value!r}"
            raise InputError(
                received, "'end' or 'every_save'", "A checkpoint's optimizer is a pickle; it stays at home."
            )
        super().init_hf_repo(token=token, private=private)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        license_name: str | None = None,
        license_link: str | None = None,
    ) -> None:
        """Write `record.json` and the README.md that is made from it into the output folder.

        A finished cell's record that lies there already is the one that the card is made from. `license` is one of the Hub's
        identifiers, or "other" with `license_name` and `license_link`, an address or the file of its text, which is copied
        beside the card. Raises InputError for a licence that the Hub would not know.
        """
        terms = licence(license, license_name, license_link, WORDS)
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        record = read_record(folder) if (folder / FILE).is_file() else None
        if record is None or not record.get("signature"):
            said = {**terms, "tags": listed(tags), "base_models": listed(finetuned_from)}
            names = {"id": first(dataset_tags), "name": first(dataset) or first(dataset_tags)}
            data = {key: value for key, value in names.items() if value}
            record = record_of(self, model_name, {**said, **({"data": data} if data else {})})
            write_json(folder / FILE, record)
        for name, text in licence_files(license_link).items():
            if text.resolve() != (folder / name).resolve():
                shutil.copyfile(text, folder / name)
        (folder / card.CARD).write_text(card.render(record), encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the model, what prepares its input, its record and card to `args.hub_model_id`, as the stock trainer returns it.

        `kwargs` are those of `create_model_card`. Raises InputError for a licence that the Hub would not know, before anything
        is made there.
        """
        licence(kwargs.get("license"), kwargs.get("license_name"), kwargs.get("license_link"), WORDS)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        return self._upload(commit_message or "End of training", token, revision, not blocking)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        token, self.args.hub_token = self.args.hub_token, None  # it would be written into training_args.bin
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def _upload(self, message: str, token: str | None, revision: str | None = None, later: bool = False) -> Any:
        return hf_api().upload_folder(
            repo_id=str(self.hub_model_id),
            folder_path=self.args.output_dir,
            commit_message=message,
            token=token,
            run_as_future=later,  # type: ignore[call-overload]
            allow_patterns=UPLOADED,
            ignore_patterns=["*/*"],  # checkpoints and whatever else lies in folders of its own
            revision=revision if revision is not None else self.args.hub_revision,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        before: Any = self.push_in_progress
        busy = before is not None and not before.is_done()
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        for pattern in SHARED:  # from copies: an old checkpoint may be deleted while it is on its way
            for path in Path(checkpoint_folder).glob(pattern):
                shutil.copy(path, Path(self.args.output_dir) / path.name)
        steps = self.args.save_strategy == SaveStrategy.STEPS
        done = f"step {self.state.global_step}" if steps else f"epoch {int(self.state.epoch or 0)}"
        job = self._upload(f"Training in progress, {done}", self.args.hub_token, later=True)
        if busy:
            before.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])  # type: ignore[assignment, arg-type]  # annotated as one job


def record_of(trainer: Any, name: str | None, said: Mapping[str, Any]) -> dict[str, Any]:
    """What a trainer knows of its model, in the form of a cell's record; `said` is what its user adds for the card."""
    args, taught = trainer.args, trainer.teacher is not None
    log = [without_times(entry) for entry in trainer.state.log_history]
    last: Mapping[str, Any] = next((entry for entry in reversed(log) if "eval_loss" in entry), {})
    metrics = {k.removeprefix("eval_"): v for k, v in last.items() if k.startswith("eval_")}
    took = next((e["train_runtime"] for e in reversed(trainer.state.log_history) if "train_runtime" in e), None)
    own = args.label_smoothing_factor
    return {
        "format": FORMAT,
        "name": name or str(trainer.hub_model_id or Path(args.output_dir).absolute().name).rpartition("/")[2],
        "status": "complete",
        "role": "student" if taught else "teacher",
        "label_smoothing": None if taught else own,
        "student": "",
        "student_label_smoothing": own if taught else None,
        "temperature": getattr(args, "kd_temperature", 1.0) if taught else None,
        "kd_weight": getattr(args, "kd_weight", 1.0) if taught else None,
        "kd_loss_scale": getattr(args, "kd_loss_scale", 1.0) if taught else None,
        "scale_student": getattr(args, "kd_scale_student", True) if taught else None,
        "kd_top_k": getattr(args, "kd_top_k", None) if taught else None,
        "seed": args.seed,
        "metrics": {k: v for k, v in metrics.items() if isinstance(v, int | float)},
        "curve": log,
        "teacher": {"name": " and ".join(map(name_of, members(trainer)))} if taught else None,
        "arguments": {k: v for k, v in args.to_dict().items() if not k.endswith("_token") and v is not None},
        "versions": versions(),
        "hardware": hardware(args.world_size),
        "durations": {} if took is None else {"train": took},
        "card": {**facts_of(trainer), **{k: v for k, v in said.items() if v}},
    }


def facts_of(trainer: Any) -> dict[str, Any]:
    """What a card says of the model that a trainer holds."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    library = "peft" if hasattr(model, "peft_config") else "timm" if kind == "timm_wrapper" else "transformers"
    pictures = getattr(model, "main_input_name", None) == "pixel_values" or kind == "timm_wrapper"
    task = "translation" if getattr(config, "is_encoder_decoder", False) else "image_classification" if pictures else ""
    taught = [name for name in map(name_of, members(trainer)) if card.is_hub_name(name) and not Path(name).exists()]
    return {
        "repo_id": trainer.hub_model_id or trainer.args.hub_model_id,
        "task": task,
        "metric": next((name for name in ("bleu", "top1", "accuracy") if f"eval_{name}" in last_keys(trainer)), None),
        "model": {
            "library": library,
            "class": type(model).__name__,
            "architecture": getattr(config, "architecture", None) or kind,
            "values": sum(value.numel() for value in model.state_dict().values()),
        },
        "teacher": {"name": taught[0], "repo_id": taught[0], "metrics": {}} if taught else None,
    }


def last_keys(trainer: Any) -> set[str]:
    return {key for entry in trainer.state.log_history for key in entry}


def members(trainer: Any) -> list[Any]:
    return [] if trainer.teacher is None else [member.model for member in trainer.teacher.members]


def name_of(model: Any) -> str:
    """Where a model came from, or else what it is."""
    config = getattr(model, "config", None)
    return str(getattr(config, "_name_or_path", "") or getattr(config, "architecture", "") or type(model).__name__)


def listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def first(value: str | list[str] | None) -> str | None:
    return next(iter(listed(value)), None)
