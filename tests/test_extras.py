"""What is installed with an extra only, and the line that says so."""

import json

import pytest

from lrpfunc.errors import MissingExtraError
from lrpfunc.extras import extra, is_installed


def test_an_extra_is_imported():
    assert extra("json", "cli", "reading") is json
    assert is_installed("json")


def test_a_missing_extra_names_the_command_that_installs_it():
    assert not is_installed("no_such_package.inner")
    with pytest.raises(MissingExtraError) as error:
        extra("no_such_package.inner", "cli", "reading a data set")
    assert str(error.value) == "reading a data set needs no_such_package: pip install 'lrpfunc[cli]'"
