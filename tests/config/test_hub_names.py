import pytest

from latteclip.config import hub_names
from latteclip.config.keys import CaptionerSection, ClipSection


@pytest.mark.parametrize(
    ("model", "pretrained", "slug"),
    [
        ("ViT-B-32", "laion2b_s34b_b79k", "ViT-B-32@laion2b_s34b_b79k"),
        ("ViT-B/32", "openai", "ViT-B-32@openai"),
        ("hf-hub:timm/ViT-B-16-SigLIP", None, "hf-hub--timm--ViT-B-16-SigLIP"),
    ],
)
def test_a_clip_of_the_hub_has_a_note(model, pretrained, slug):
    names = hub_names.hub_clip(ClipSection(model=model, pretrained=pretrained))
    assert hub_names.slug(names) == slug


@pytest.mark.parametrize(
    ("model", "revision", "slug"),
    [
        ("me/llava", None, "me--llava"),
        ("me/llava", "refs/pr/1", "me--llava@refs--pr--1"),
        ("models/my/llava", None, None),
        ("here/llava", None, None),
    ],
)
def test_a_captioner_of_the_hub_has_a_note(model, revision, slug, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "llava").mkdir(parents=True)
    names = hub_names.hub_captioner(CaptionerSection(model=model, revision=revision))
    assert (names and hub_names.slug(names)) == slug


def test_a_long_name_is_cut_and_stays_unique():
    one, other = (hub_names.slug({"model": "local-dir:" + "é/" * 99 + end}) for end in "ab")
    assert one != other and len(one) == len(other) == hub_names.MAX_SLUG
