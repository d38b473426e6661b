# What the rules share: the checked configuration, the code that a stage runs, its settings.
import os
import sys
from modulefinder import ModuleFinder

from snakemake.exceptions import WorkflowError

from latteclip.config.configuration import Settings, as_json
from latteclip.core.errors import UserError
from latteclip.config.model_names import slug as model_slug

try:
    settings = Settings(
        config,
        workflow.config_settings.overwrite_config,
        workflow.source_path("../schemas/config.schema.yaml"),
    )
except UserError as error:
    raise WorkflowError(str(error))


# Folder of class folders or the like, made or downloaded for a dataset: shared by all runs.
DATA = "resources/{dataset}/data"
# What the cache of Hugging Face holds of a model: shared by all datasets that name it.
MODEL_NOTE = "resources/models/{model}.json"
# On whatever node a job runs, the commands of the environment that runs Snakemake come first.
os.environ.update(
    PATH=os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()])
)
if workflow.remote_exec:  # a job of a cluster
    # Nodes have no internet: rules that run where there is some fetched what is needed.
    os.environ.update(HF_HUB_OFFLINE="1")
    # A cluster's SIGTERM reaches the shell as well. It is to live until the command has heard it:
    # with the shell the job would end, and the command with it, before that has kept its work.
    shell.prefix("set -euo pipefail; trap : TERM; ")


ANY_DATASET = "[^/]+"


wildcard_constraints:
    dataset=ANY_DATASET,
    method="[^/]+",
    seed=r"\d+",
    kind="images|groups",
    shard=r"\d+",
    shards=r"\d+",


class PackageFinder(ModuleFinder):
    """Follows imports of the package alone: a folder of data may be called json or torch."""

    def find_module(self, name, path, parent=None):
        if path is None and name != "latteclip":
            raise ImportError(name)
        return super().find_module(name, path, parent)


def sources(module):
    """The files of a package module and of all that it imports from the package.

    Declared as inputs, they let an edit of the code rerun the stages that run it, and no other.
    """
    finder = PackageFinder(path=[os.getcwd()])
    finder.import_hook(module)
    return sorted(
        os.path.relpath(found.__file__)
        for name, found in finder.modules.items()
        if name.startswith("latteclip.") and found.__file__
    )


def one_of(names):
    """A wildcard constraint: any of the names, or none where there are none."""
    return "|".join(names) or "(?!)"


def data_folder(wildcards):
    """The user's own folder, or the one that a rule makes."""
    return settings.dataset(wildcards.dataset)["source"].get("folder", DATA)


def clip_settings(dataset):
    """The CLIP model, the class template, and how images are encoded."""
    return {
        **settings.section("clip", dataset),
        **settings.section("inference", dataset),
        "template": settings.dataset(dataset)["template"],
    }


def hub_model(section):
    """The note on a dataset's model, where it is of the Hugging Face hub (models.smk)."""

    def path(wildcards):
        names = settings.hub_model(section, wildcards.dataset)
        return [MODEL_NOTE.format(model=model_slug(names))] if names else []

    return path


def captioner(wildcards):
    return as_json(settings.section("captioner", wildcards.dataset))


def prompt(kind):
    return lambda wildcards: settings.dataset(wildcards.dataset)["prompts"][kind]


def pseudo_labels_if_named(wildcards):
    """The pseudo-labels, where the image prompt has a place for them."""
    if "{}" in prompt("image")(wildcards):
        return [f"results/{wildcards.dataset}/pseudo_labels.parquet"]
    return []


def own_captions(kind):
    """The user's file of captions, where it stands in for the captioner."""

    def path(wildcards):
        values = settings.section("captioner", wildcards.dataset)
        file = values[f"{kind}_file"]
        return [file] if values["engine"] == "file" and file else []

    return path


def caption_shards(wildcards):
    n = settings.section("captions", wildcards.dataset)["shards"]
    folder = f"results/{wildcards.dataset}/captions/shards"
    return [f"{folder}/{wildcards.kind}-{i}-of-{n}.parquet" for i in range(1, n + 1)]


def captions_in_use(wildcards):
    """The kinds of captions that a method which runs reads."""
    return [
        f"results/{wildcards.dataset}/captions/{kind}s.parquet"
        for kind in settings.caption_kinds(wildcards.dataset)
    ]


def options(*names):
    """Inputs that may be absent, as options of the command."""
    return lambda wildcards, input: " ".join(
        f"--{name.replace('_', '-')} {file}" for name in names for file in input[name]
    )


def captions_of(kind):
    """The captions of a kind, where the method reads them."""

    def path(wildcards):
        if settings.reads_captions(wildcards.method, kind, wildcards.dataset):
            return [f"results/{wildcards.dataset}/captions/{kind}s.parquet"]
        return []

    return path


def caption_labels_if_used(wildcards):
    """The labels that captions give, where the method trains on them."""
    if settings.reads_caption_labels(wildcards.method, wildcards.dataset):
        return [f"results/{wildcards.dataset}/caption_labels.parquet"]
    return []


def caption_label_settings(wildcards):
    return as_json(
        {
            **settings.section("clip", wildcards.dataset),
            "batch_size": settings.section("inference", wildcards.dataset)[
                "batch_size"
            ],
        }
    )


def processes_of(wildcards):
    """Processes of a fine-tuning, each on a GPU of its own."""
    return settings.section("processes", wildcards.dataset)["finetune"]


def finetune_command(wildcards):
    """One process, or several under torchrun."""
    processes = processes_of(wildcards)
    if processes == 1:
        return "latteclip"
    return f"torchrun --standalone --nproc-per-node {processes} -m -- latteclip"


def evaluate_settings(wildcards):
    return as_json(
        {
            **settings.section("inference", wildcards.dataset),
            "precision": settings.section("clip", wildcards.dataset)["precision"],
        }
    )


def propagation_settings(wildcards):
    return as_json(
        {
            **settings.method(wildcards.method, wildcards.dataset).get("graph", {}),
            "topk": settings.section("inference", wildcards.dataset)["topk"],
        }
    )


def finetune_settings(wildcards):
    method = settings.method(wildcards.method, wildcards.dataset)
    return as_json(
        {
            **settings.section("clip", wildcards.dataset),
            "template": settings.dataset(wildcards.dataset)["template"],
            "objective": method["objective"],
            "pseudo_labels": method.get("pseudo_labels", "zero_shot"),
            "switches": method.get("switches", {}),
            "finetune": method["finetune"],
            "compute": settings.section("compute", wildcards.dataset),
        }
    )
