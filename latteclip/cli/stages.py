"""The commands that the rules of the workflow call, one for each stage."""

import argparse
import os
from importlib import import_module

from latteclip.cli import arguments

STAGES = {  # by command: the module of its function
    "generate_textures": "latteclip.demo.generate_textures",
    "download_dataset": "latteclip.data.download_dataset",
    "download_clip": "latteclip.data.download_models",
    "download_captioner": "latteclip.data.download_models",
    "download_eye": "latteclip.data.download_models",
    "index_images": "latteclip.data.index_images",
    "find_duplicates": "latteclip.data.find_duplicates",
    "encode_images": "latteclip.labels.encode_images",
    "pseudo_label_images": "latteclip.labels.pseudo_label_images",
    "caption_images": "latteclip.captions.caption",
    "caption_groups": "latteclip.captions.caption",
    "score_classes": "latteclip.captions.score_classes",
    "gather_captions": "latteclip.captions.gather_captions",
    "summarize_captions": "latteclip.captions.summarize_captions",
    "calibrate_zero_shot": "latteclip.labels.calibrate_zero_shot",
    "fuse_labels": "latteclip.labels.fuse_labels",
    "score_unknown": "latteclip.labels.score_unknown",
    "assemble_model": "latteclip.deploy.assemble_model",
    "find_learning_rate": "latteclip.train.find_learning_rate",
    "finetune": "latteclip.train.finetune",
    "average_weights": "latteclip.deploy.average_weights",
    "evaluate": "latteclip.evaluate.evaluate",
    "evaluate_classifier": "latteclip.evaluate.evaluate_classifier",
    "propagate_labels": "latteclip.evaluate.propagate_labels",
    "score_audit": "latteclip.audit.score_audit",
    "select_model": "latteclip.evaluate.select_model",
    "summarize": "latteclip.evaluate.summarize",
    "report_dataset": "latteclip.report.report_dataset",
    "index_results": "latteclip.report.index_results",
}


def run(stage: str, given: argparse.Namespace) -> None:
    """Import the function of a stage and call it with the values of its options."""
    # Read when torch first uses the GPU: texts of several lengths leave no gaps in its memory.
    if stage == "finetune" and "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    arguments.call(getattr(import_module(STAGES[stage]), stage), given)
