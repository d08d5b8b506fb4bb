"""Libraries say only what went wrong; the study speaks for itself."""

import logging
import sys
import warnings

SPOKEN = "hf_lskd.teacher_cache"  # says, before a cache is filled, how large it becomes


class Said(logging.Handler):
    """A line on the standard error of the moment, by the command's name."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"hf-lskd: {record.getMessage()}", file=sys.stderr)


def quiet_libraries() -> None:
    """Set the log levels of a process that runs a study's work: warnings, and the size of a teacher cache."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("timm").setLevel(logging.ERROR)
    logging.getLogger("hf_lskd").setLevel(logging.WARNING)
    spoken = logging.getLogger(SPOKEN)
    spoken.setLevel(logging.INFO)
    if not any(isinstance(handler, Said) for handler in spoken.handlers):
        spoken.addHandler(Said(logging.INFO))
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
