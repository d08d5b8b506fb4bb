"""A drawn study with everything that a report can show, and its page."""

from pathlib import Path

import pytest

from tests.report.page import Page, page_of
from tests.study_folder import make_study


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds with an equalised axis; read only."""
    return make_study(tmp_path_factory.mktemp("demo"), loss_scales=(1.0, "equalised"), targets=40)


@pytest.fixture(scope="package")
def demo_page(demo: Path) -> Page:
    return page_of(demo)
