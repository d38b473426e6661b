import subprocess
import sys

import open_clip

from latteclip.config import open_clip_names


def test_names_are_those_that_open_clip_lists():
    assert open_clip_names.models() == set(open_clip.list_models())
    listed = {}
    for model, tag in open_clip.list_pretrained():
        listed.setdefault(model, set()).add(tag)
    assert {model: open_clip_names.tags(model) for model in listed} == listed
    assert open_clip_names.tags("ViT-L14") == set()
    assert open_clip.get_pretrained_cfg("ViT-B-32", "LAION2B-s34b-b79k")
    assert open_clip_names.clean("LAION2B-s34b-b79k") in open_clip_names.tags("ViT-B-32")


def test_names_are_read_without_torch():
    code = (
        "import sys; from latteclip.config import open_clip_names as names; "
        "assert names.models() and names.tags('ViT-B-32'); assert 'open_clip' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
