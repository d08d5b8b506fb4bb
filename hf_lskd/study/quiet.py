"""Libraries say only what went wrong; the study speaks for itself."""

import logging
import warnings


def quiet_libraries() -> None:
    """Set the log levels of a process that runs a study's work."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("timm").setLevel(logging.ERROR)
    logging.getLogger("hf_lskd").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
