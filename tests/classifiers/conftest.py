"""Images in folders of their class, for runs."""

import pytest
from classifier_runs import write_images


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    write_images(folder)
    return folder
