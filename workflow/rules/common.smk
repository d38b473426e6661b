# Shared by the rules: the code of their commands, the resolved configuration, and short names for
# functions of latteclip/cli/rules.py.
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
from latteclip.cli.rules import Rules, file_names, one_of, options, part
from latteclip.config import jobs, models
from latteclip.config.jobs import code_of, training_code
from latteclip.core.files import GROUPS, IMAGES, NAMES, SCORES, edited_classes

machine = Machine(workflow)
# No `configfile:`, which a module with a `config:` skips, and which would mix config.yaml with the
# command line: the file of a dataset stands between them. `load` validates with sentences and lines.
run = machine.load(config)
handlers = Handlers(config, run, machine)
rule_functions = Rules(run, machine)

of = rule_functions.of
as_json = rule_functions.as_json
each = rule_functions.each
users = rule_functions.users
# The models that jobs load: notes on those of the hub, and digests of those on this machine.
notes = lambda *names: of(lambda user: jobs.notes(user.models), *names)
local_files = lambda *names: of(lambda user: jobs.local_files(user.models), *names)
encoder_of = lambda encoder: models.encoder_models([run.image_encoders[encoder]])
threads_of = rule_functions.threads
on_gpus = rule_functions.on_gpus
memory = rule_functions.memory
minutes = rule_functions.minutes

# On any node the commands are those of the environment that runs Snakemake, with the code above.
commands = [os.path.dirname(sys.executable), *os.get_exec_path()]
os.environ.update(PATH=os.pathsep.join(commands))
if IS_CLONE:
    modules = [str(ROOT), os.environ.get("PYTHONPATH")]
    os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, modules)))
if machine.runs_one_job:  # a job of a cluster, whose nodes have no internet
    os.environ.update(HF_HUB_OFFLINE="1")
    # SLURM also signals the shell. It must outlive the command, which needs time to save its work.
    shell.prefix("set -euo pipefail; trap : TERM; ")


def datasets_with(is_wanted):
    """Return a wildcard constraint: the datasets of the run that are wanted."""
    return one_of(each.name for each in run.datasets if is_wanted(each))


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


def written(dataset, *names):
    """Return files of the user's, which a person's commands write, if all are there."""
    files = [f"{dataset.folder}/{name}" for name in names]
    return files if all(exists(local(file)) for file in files) else []


def audited(dataset):
    """Return the plan and the answers of an audit, if any: of the test split, or of training."""
    files = lambda split: [f"audit/{split}/plan.parquet", f"audit/{split}/answers.json"]
    return written(dataset, *files("test")) or written(dataset, *files("train"))


def audit(dataset):
    """Return the scores of a dataset's models by an audit if there was one."""
    return [f"{dataset.results}/audit{SUFFIX}.json"] if audited(dataset) else []


def proposes_classes(dataset):
    """Return whether a stage writes classes.txt. After an edit by hand, no stage does."""
    return dataset.discovers and edited_classes(dataset.folder) is None


def left_out(dataset):
    """Return the file with the images that a person left out before the edit, if there is one."""
    return written(dataset, "discovery.json") if dataset.discovers else []


# Resources of jobs that read tables, and of those that encode each image once.
LIGHT = {
    "mem_mb": memory(4_000, per_million=4_000),
    "runtime": minutes(10, images_per_second=1_000),
}
ENCODES = {
    "mem_mb": memory(6_000, per_million=8_000, loads_images=True),
    "runtime": minutes(15, images_per_second=100),
}


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
# A person's answers, from which the labels learn.
ANSWERS = users(of(lambda dataset: written(dataset, "answers.json")))
# They are no input of captioners: an answer after their questions reruns nothing.
ANSWERS_OPTION = of(lambda dataset: f"--answers {dataset.folder}/answers.json")
# Whether a method, or some method of a dataset, reads fused labels.
READS_FUSED = lambda each: each.reads_fused_labels
HAS_EXAMPLES = lambda dataset: dataset.keys.split.examples
# Pages, choices and audits of a table with its own name stand beside the main ones.
SUFFIX = run.suffix
TABLE = f"results/{run.keys.table.name}{run.limit_suffix}"
TABLES = [f"{TABLE}.csv", f"{TABLE}.md"]
# Priorities on few cores: first the jobs that most others wait for, then the longest ones.
FIRST, EARLY = 2, 1
