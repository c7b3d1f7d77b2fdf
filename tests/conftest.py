"""What holds for all tests."""

import pytest
import torch

from lrpfunc import digits
from lrpfunc.pictures import classifiers
from tests import versions
from tests.browsers import axe, browser, firefox, opened  # noqa: F401 (fixtures)

# Most tests work on small tensors, for which a second thread only waits, and on a busy machine for long.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Leave out what this torch, and this transformers, cannot do."""
    installed = versions.installed()
    for item in items:
        for reason in versions.reasons_against(item.nodeid, installed):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Traces of tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRPFUNC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def classifier():
    return classifiers.load("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The forty sample digits as image files, four per class."""
    path = tmp_path_factory.mktemp("data") / "digits"
    digits.write_images(path)
    return path


collect_ignore = ["lxt_reference.py"]  # a script for LXT's own environment, not for doctest to import
