"""The command line, as tests of its refusals call it."""

import pytest

from hf_lskd.cli import main

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *argv: str, code: int = 2) -> str:
    """The one message of a command that must fail so."""
    capsys.readouterr()
    try:
        ended = main(list(argv))
    except SystemExit as stop:  # argparse
        ended = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert (ended, out) == (code, ""), err
    assert err.startswith("hf-lskd: ")
    assert "Traceback" not in err
    return err
