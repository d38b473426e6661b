import pytest
from support.backbones import CPU, KINDS

from latteclip.clip import model as clips


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def clip(backbones, kind):
    return clips.load(backbones[kind], None, CPU)
