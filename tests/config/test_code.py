"""The digest of a stage's code changes with the modules that the stage imports."""

from latteclip.config import jobs

EDITS = {  # a module: stages that an edit reruns, and stages that it does not
    "clip.clip_config": ("evaluate.evaluate", "report.summarize"),
    "labels.label_model": ("labels.fuse_labels", "train.finetune"),
    "report.gallery": ("report.report_dataset", "report.summarize"),
    "core.files": ("captions.caption", None),  # which reads users' tables
    # It has no effect on results, or its values are parameters.
    "core.devices": (None, "train.finetune"),
    "config.keys": (None, "train.finetune"),
    "train.objectives.losses": (None, "train.finetune"),  # code of the objective
}


def test_an_edit_reruns_the_stages_that_import_the_module():
    for edited, (rerun, spared) in EDITS.items():
        for stage, reruns in ((rerun, True), (spared, False)):
            found = jobs.closure(f"latteclip.{stage}") if stage else set()
            assert not stage or (f"latteclip.{edited}" in found) == reruns, edited
