"""`config/modern.yaml` as people run it, and with stand-ins for its two models."""

import json

import pyarrow.parquet as pq
import pytest
from support.class_folders import class_folders
from support.tiny import write_backbone

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


@pytest.mark.slow
def test_it_runs_to_its_table_with_tiny_models(project, tmp_path):
    clip = {"model": write_backbone("siglip", tmp_path / "siglip"), "pretrained": None}
    captioner = {
        "engine": "transformers",
        "model": "latteclip/demo/models/llava",
        "dtype": "float32",
        "max_new_tokens": 4,
        "max_model_len": 256,
    }
    run = project.snakemake(
        *(*MODERN, *ONCE),
        f"clip={json.dumps(clip)}",
        f"captioner={json.dumps(captioner)}",
        "groups={'canvas': 128, 'gap': 4}",
        "finetune={'epochs': 1, 'batch_size': 6, 'warmup_steps': 1}",
    )
    assert run.returncode == 0, run.stdout
    assert (project.root / "results" / "summary.md").read_text().count("photographs") >= 2
    results = project.root / "results" / "photographs"
    history = pq.read_table(results / "latteclip" / "seed0" / "history.parquet")
    assert all(loss > 0 for loss in history["loss"].to_pylist())
