# Shared by the rules: the resolved configuration, functions of a job's wildcards, and files that several
# rules name.
import json
import os
import sys

# The folder of the Snakefile in use, if it is on this machine: the code beside it comes before any
# installed one.
ROOT = Path(os.path.realpath(str(workflow.current_basedir))).parents[1]
IS_CLONE = (ROOT / "latteclip").is_dir()
if IS_CLONE:
    sys.path.insert(0, str(ROOT))

from latteclip.cli.machine import Machine
from latteclip.cli.messages import Handlers
from latteclip.cli.rules import (
    JobFunctions,
    inputs_as_json,
    one_of,
    optional_inputs,
    shard_or_labeller,
)
from latteclip.config import jobs
from latteclip.config.jobs import code_of, training_code
from latteclip.core.files import GROUPS, IMAGES, NAMES, SCORES, edited_classes

machine = Machine(workflow)
# No `configfile:`, which a module with a `config:` skips, and which would mix config.yaml with the
# command line: the file of a dataset stands between them. `load` validates with sentences and lines.
run = machine.load(config)
handlers = Handlers(config, run, machine)
machine.set_environment(code=ROOT if IS_CLONE else None)
if machine.runs_one_job:
    # SLURM also signals the shell. It must outlive the command, which needs time to save its work.
    shell.prefix("set -euo pipefail; trap : TERM; ")

# A setting of the dataset, method, labeller or captioner of a job. "keys.clip.precision" is the key
# clip.precision of the configuration, resolved for that dataset; other names are properties in
# latteclip/config/resolve.py and labellers.py. A function is called with the object.
job_functions = JobFunctions(run, machine)
dataset_setting = job_functions.dataset_setting
method_setting = job_functions.method_setting
labeller_setting = job_functions.labeller_setting
captioner_setting = job_functions.captioner_setting
as_json = job_functions.as_json
user_files = job_functions.user_files
# Resources that grow with the images.
threads_of = job_functions.threads
gpus = job_functions.gpus
memory = job_functions.memory
minutes = job_functions.minutes


def notes_on_models(user):
    """Return files that the download of models leaves, of all that a dataset, ... loads."""
    return jobs.model_notes(user.models)


def digests_of_models(user):
    """Return digests of the models on this machine that a dataset, captioner or labeller loads."""
    return jobs.model_digests(user.models)


def shared_folder(name):
    """Return a parameter: a folder that all runs of a dataset share, below resources/."""
    return dataset_setting(lambda dataset: jobs.shared_folder(dataset, name))


def download_settings(wildcards, output):
    """Return where a dataset comes from. Snakemake compares no function of the output."""
    return as_json(dataset_setting(jobs.download_dataset))(wildcards)


def fold(wildcards):
    """Return which training images a seed leaves out."""
    return jobs.fold(run.dataset(wildcards.dataset), wildcards.seed)


def shards_of_table(wildcards):
    """Return the parts of a table of captions or scores that jobs write side by side."""
    return jobs.shards(run.dataset(wildcards.dataset), wildcards.table)


def labellers_with(folder, is_wanted):
    """Return a wildcard constraint: wanted labellers of the run, by their files in a folder.

    A labeller of another dataset may have the same name and be of another kind.
    """
    return one_of(
        f"(?<=/{dataset.name}/{folder}/){labeller.name}"
        for dataset in run.datasets
        for labeller in dataset.labellers
        if is_wanted(labeller)
    )


def files_if_there(dataset, *names):
    """Return files among the results that a person's commands write, if all are there."""
    files = [f"{dataset.folder}/{name}" for name in names]
    return files if all(exists(local(file)) for file in files) else []


def answers_of_person(dataset):
    """Return a person's answers, from which the labels learn, if there are some."""
    return files_if_there(dataset, "answers.json")


def edits_of_classes(dataset):
    """Return a person's edits of the proposed classes, if there are some."""
    return files_if_there(dataset, "classes.json")


def images_left_out(dataset):
    """Return the file with the images that a person left out of the classes, if there is one."""
    return files_if_there(dataset, "discovery.json") if dataset.discovers else []


def audit_answers(dataset):
    """Return the plan and the answers of an audit, if any: of the test split, or of training."""
    for split in ("test", "train"):
        folder = f"audit/{split}"
        files = files_if_there(
            dataset, f"{folder}/plan.parquet", f"{folder}/answers.json"
        )
        if files:
            return files
    return []


def audit_scores(dataset):
    """Return the scores of a dataset's models by an audit if there was one."""
    has_audit = bool(audit_answers(dataset))
    return [f"{dataset.results}/audit{SUFFIX}.json"] if has_audit else []


def answer_tables(dataset):
    """Return the tables of captioners' answers about a dataset."""
    return [each.path for each in dataset.answer_tables]


def all_answer_tables(wildcards):
    """Return the tables of captioners' answers about all datasets, with their names."""
    return jobs.named_answer_tables(*run.datasets)


def all_audit_scores(wildcards):
    """Return the scores by audits of all datasets."""
    return [file for dataset in run.datasets for file in audit_scores(dataset)]


def proposes_classes(dataset):
    """Return whether a stage writes classes.txt. After an edit by hand, no stage does."""
    return dataset.discovers and edited_classes(dataset.folder) is None


# Resources of jobs that read tables, and of those that encode each image once.
TABLE_RESOURCES = {
    "mem_mb": memory(4_000, per_million=4_000),
    "runtime": minutes(10, images_per_second=1_000),
}
ENCODING_RESOURCES = {
    "mem_mb": memory(6_000, per_million=8_000, loads_images=True),
    "runtime": minutes(15, images_per_second=100),
}
# Priorities on few cores: first the jobs that most others wait for, then the longest ones.
FIRST, EARLY = 2, 1


wildcard_constraints:
    dataset="[^/]+",
    method="[^/]+",
    seed=r"\d+",
    labeller="[^/]+",
    shard=r"\d+",
    shards=r"\d+",


# Files that several rules name where a condition decides about them.
PSEUDO_LABELS = "results/{dataset}/pseudo_labels.parquet"
CLASS_EMBEDDINGS = "results/{dataset}/class_embeddings.safetensors"
CLIP = "results/{dataset}/classifiers/clip"  # the pretrained model
ADAPTED = "results/{dataset}/classifiers/adapted.safetensors"
IMAGE_CAPTIONS = "results/{dataset}/captions/images.parquet"
GROUP_CAPTIONS = "results/{dataset}/captions/groups.parquet"
FUSED_LABELS = "results/{dataset}/fused_labels.parquet"
FUSION_REPORT = "results/{dataset}/fused_labels.json"
VOTES = "results/{dataset}/votes.parquet"
CLASS_SCORES = "results/{dataset}/class_scores.parquet"
# Features by each of the image encoders beside CLIP, and the classifier by all of them.
IMAGE_ENCODER_FEATURES = collect(
    "results/{dataset}/image_encoders/{encoder}.parquet",
    encoder=run.image_encoders,
    allow_missing=True,
)
ENCODERS_PROTOTYPES = (
    "results/{dataset}/classifiers/image_prototypes_encoders.safetensors"
)
ANSWERS = user_files(dataset_setting(answers_of_person))
# Answers are no input of captioners: those after their questions rerun nothing.
ANSWERS_OPTION = dataset_setting(
    lambda dataset: f"--answers {dataset.folder}/answers.json"
)
# Pages, choices and audits of a table with its own name stand beside the main ones.
SUFFIX = run.suffix
TABLE = f"results/{run.keys.table.name}{run.limit_suffix}"
TABLES = [f"{TABLE}.csv", f"{TABLE}.md"]
