"""`config/modern.yaml` as people run it, and with stand-ins for its two models."""

import pytest
from support.class_folders import class_folders

MODERN = ("--configfile", "config/modern.yaml", "--config", "image_dir=photos")
ONCE = ("seeds=1", "method=zero_shot,latteclip")


@pytest.fixture
def project(checkout):
    class_folders(checkout.root / "photos", n=10)
    return checkout


def test_a_dry_run_wants_its_models_and_every_stage(project):
    run = project.snakemake("-n", *MODERN, *ONCE)
    assert run.returncode == 0, run.stdout
    for rule in ("download_clip", "download_captioner", "caption_groups", "finetune", "summarize"):
        assert f"rule {rule}:" in run.stdout, run.stdout
    for model in ("ViT-B-16-SigLIP2-256", "Qwen/Qwen3-VL-8B-Instruct"):
        assert model in run.stdout
