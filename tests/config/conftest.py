import pytest

from latteclip.config import layers
from latteclip.config.resolve import Run


@pytest.fixture
def configured():
    """Resolves the repository's own configuration with what a user gives."""
    return lambda **given: Run(layers.defaults(project=None), given)
