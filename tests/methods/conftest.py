"""The tiny image set, written once."""

import pytest
from tiny_pictures import save_tiny_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_pictures(tmp_path_factory.mktemp("data") / "pictures"))
