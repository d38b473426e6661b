import pytest

from latteclip.config import layers
from latteclip.config.configuration import Configuration


@pytest.fixture
def configured():
    """Makes the repository's own configuration with what a user gives."""
    return lambda **given: Configuration(layers.defaults(project=None), given)
