"""Which files a rule reads besides those that it names: the configuration decides."""

from pathlib import Path
from typing import Any

from latteclip.config import code, model_names
from latteclip.config.configuration import HEADS, Configuration
from latteclip.core.steps import AUTO

# Folder of class folders or the like, made or downloaded for a dataset: shared by all runs.
DATA = "resources/{dataset}/data"
# What a folder of the user's held when it was indexed. No output: a failed job must not remove it.
FOLDER_FILES = "resources/{dataset}/folder_files.parquet"
# What the cache of Hugging Face holds of a model: shared by all datasets that name it.
MODEL_NOTE = "resources/models/{model}.json"
# The model that is chosen for a dataset, and why; a table of its own has its own.
SELECTION = "results/{{dataset}}/selection{suffix}.json"
SELECTED_MODEL = "results/{{dataset}}/model{suffix}"
# A person's answers about images of a split (`latteclip audit`), and how they were drawn.
ANSWERS = "results/{dataset}/audit/{split}/{name}"
# What the answers say of the dataset's models.
AUDIT = "results/{{dataset}}/audit{suffix}.json"
# Classifiers that are made without training.
CLASSIFIERS = "results/{dataset}/classifiers/{name}.safetensors"
# What the trainings of an average say of the images that they left out.
LEFT_OUT = "left_out.parquet"
# The method whose classifier comes with the labels, without training.
LABELS_METHOD = "image_prototypes"
Paths = list[str]


def data_folder(configuration: Configuration, dataset: str) -> str:
    """The user's own folder, or the one that a rule makes."""
    made = DATA.format(dataset=configuration.whole(dataset))
    return str(configuration.dataset(dataset)["source"].get("folder", made))


def made_folder(configuration: Configuration, dataset: str) -> Paths:
    """Return the folder of images, where a rule makes it."""
    is_made = "folder" not in configuration.dataset(dataset)["source"]
    return [data_folder(configuration, dataset)] if is_made else []


def answer_store(configuration: Configuration, dataset: str, kind: str) -> str:
    """Return the folder of the kept answers about "images", "groups" or "scores"."""
    return f"resources/{configuration.whole(dataset)}/captions/{kind}"


def hub_model(configuration: Configuration, dataset: str, section: str) -> Paths:
    """The note on the model of section "clip" or "captioner", where it comes from the hub."""
    names = configuration.hub_model(section, dataset)
    return [MODEL_NOTE.format(model=model_names.slug(names))] if names else []


def engine_code(configuration: Configuration, dataset: str) -> Paths:
    """The sources of the engine that writes a dataset's captions."""
    engine = configuration.section("captioner", dataset)["engine"]
    return code.sources(f"latteclip.captions.engines.{engine}")


def scorer_code(configuration: Configuration, dataset: str) -> Paths:
    """The sources of what scores a dataset's classes."""
    engine = configuration.section("captioner", dataset)["engine"]
    return code.sources(f"latteclip.captions.scorers.{engine}")


def objective_code(configuration: Configuration, method: str) -> Paths:
    """The sources of what a method optimises."""
    module = configuration.objective(method).removesuffix("_supervised")
    return code.sources(f"latteclip.train.objectives.{module}")


def pseudo_labels_if_named(configuration: Configuration, dataset: str) -> Paths:
    """The pseudo-labels, where the image prompt has a place for them."""
    named = "{}" in configuration.section("prompts", dataset)["image"]
    return [f"results/{dataset}/pseudo_labels.parquet"] if named else []


def own_captions(configuration: Configuration, dataset: str, kind: str) -> Paths:
    """The user's file of captions of "images" or "groups", where it replaces the captioner."""
    return _named(configuration, dataset, f"captioner.{kind}_file")


def own_scores(configuration: Configuration, dataset: str) -> Paths:
    """The user's file of class scores, where it replaces the captioner."""
    return _named(configuration, dataset, "scores.file")


def _named(configuration: Configuration, dataset: str, key: str) -> Paths:
    files = configuration.own_files(dataset)
    return [files[key]] if key in files else []


def class_scores_if_in_use(configuration: Configuration, dataset: str) -> Paths:
    """The scores of classes, where the configuration asks for some."""
    wanted = configuration.scores_classes(dataset)
    return [f"results/{dataset}/class_scores.parquet"] if wanted else []


def score_shards(configuration: Configuration, dataset: str) -> Paths:
    """The parts of which gather_captions makes the table of class scores."""
    n = configuration.shards(dataset)
    folder = f"results/{dataset}/captions/shards"
    return [f"{folder}/class_scores-{i}-of-{n}.parquet" for i in range(1, n + 1)]


def caption_shards(configuration: Configuration, dataset: str, kind: str) -> Paths:
    """The parts of which gather_captions makes the table of "images" or "groups"."""
    n = configuration.shards(dataset)
    folder = f"results/{dataset}/captions/shards"
    return [f"{folder}/{kind}-{i}-of-{n}.parquet" for i in range(1, n + 1)]


def captions_in_use(configuration: Configuration, dataset: str) -> Paths:
    """The tables of captions that some method of the run needs."""
    return [_captions(dataset, kind) for kind in configuration.caption_kinds(dataset)]


def captions_if_in_use(configuration: Configuration, dataset: str, kind: str) -> Paths:
    """The captions of kind "image" or "group", where some method of the run needs them."""
    return [_captions(dataset, kind)] if kind in configuration.caption_kinds(dataset) else []


def caption_summary_if_in_use(configuration: Configuration, dataset: str) -> Paths:
    """The captions in numbers, where some method of the run needs captions."""
    needed = configuration.caption_kinds(dataset)
    return [f"results/{dataset}/captions/summary.json"] if needed else []


def captions_of_method(configuration: Configuration, dataset: str, method: str, kind: str) -> Paths:
    """The captions of kind "image" or "group", where the method reads them."""
    reads = configuration.reads_captions(method, kind, dataset)
    return [_captions(dataset, kind)] if reads else []


def caption_labels_of_method(configuration: Configuration, dataset: str, method: str) -> Paths:
    """The labels that captions give, where the method trains on them."""
    reads = configuration.reads_caption_labels(method, dataset)
    return [f"results/{dataset}/caption_labels.parquet"] if reads else []


def captions_that_vote(configuration: Configuration, dataset: str) -> Paths:
    """The captions of the images, unless scores of classes vote in their place."""
    return [] if configuration.scores_classes(dataset) else [_captions(dataset, "image")]


def calibrated_of_method(configuration: Configuration, dataset: str, method: str) -> Paths:
    """The calibrated zero-shot classifier, where the method trains on its labels."""
    reads = configuration.pseudo_labels(method, dataset) == "zero_shot_calibrated"
    return [CLASSIFIERS.format(dataset=dataset, name="calibrated")] if reads else []


def image_prototypes_of_method(configuration: Configuration, dataset: str, method: str) -> Paths:
    """The classifier that LatteCLIP's prototypes start from, where it is not the class texts."""
    starts = configuration.method(method, dataset).get("prototypes", "text") == "image"
    is_latteclip = configuration.objective(method) == "latteclip"
    return [_image_prototypes(configuration, dataset, method)] if starts and is_latteclip else []


def learning_rate_of_method(configuration: Configuration, dataset: str, method: str) -> Paths:
    """Return what find_learning_rate writes, where the method's learning rate is "auto"."""
    is_auto = configuration.method(method, dataset)["finetune"]["lr"] == AUTO
    return [f"results/{dataset}/{method}/learning_rate.json"] if is_auto else []


def averaged_files(configuration: Configuration, dataset: str, method: str, kind: str) -> Paths:
    """Return the files of one kind (a key of `averaged`) of the trainings of an average."""
    return [str(run[kind]) for run in averaged(configuration, dataset, method)]


def averaged(configuration: Configuration, dataset: str, method: str) -> list[dict[str, str]]:
    """Return what average_weights reads of each training that it averages."""
    folder = f"results/{dataset}/{configuration.averaged(method)}"
    names = {"model": "model", "history": "history.parquet", "judged": "judged.parquet"}
    return [
        {kind: f"{folder}/seed{seed}/{name}" for kind, name in names.items()}
        for seed in configuration.seeds
    ]


def left_out_of_average(
    configuration: Configuration, dataset: str, method: str, seed: str
) -> Paths:
    """Return what average_weights says of left-out images, where the method is an average."""
    path = f"results/{dataset}/{method}/seed{seed}/{LEFT_OUT}"
    return [path] if configuration.is_average(method) else []


def classifier_of_method(configuration: Configuration, dataset: str, method: str) -> str:
    """The classifier of a method that trains nothing."""
    if configuration.objective(method) == "zero_shot":
        return f"results/{dataset}/class_embeddings.safetensors"
    if configuration.objective(method) == "image_prototypes":
        return _image_prototypes(configuration, dataset, method)
    return CLASSIFIERS.format(dataset=dataset, name="calibrated")


def _image_prototypes(configuration: Configuration, dataset: str, method: str) -> str:
    """Those that captions taught, where the method rests on captions."""
    fused = configuration.reads_caption_labels(method, dataset)
    name = "image_prototypes" if fused else "image_prototypes_by_zero_shot"
    return CLASSIFIERS.format(dataset=dataset, name=name)


def models_of_heads(configuration: Configuration) -> Paths:
    """The model folders of the methods that train nothing but have a classifier."""
    return [
        f"results/{dataset}/{method}/seed0/model"
        for dataset in configuration.datasets
        for method in configuration.methods_of(dataset)
        if configuration.objective(method) in HEADS
    ]


def labels(configuration: Configuration) -> Paths:
    """What the target `labels` asks for: labels and a classifier of each dataset, no training.

    Captions, or class scores, are made for them, whether or not a method of the run reads some.
    """
    names = ("caption_labels.parquet", "unknown.parquet", f"{LABELS_METHOD}/seed0/model")
    return [f"results/{dataset}/{name}" for dataset in configuration.datasets for name in names]


def candidates(configuration: Configuration, dataset: str) -> list[dict[str, Any]]:
    """What select_model is told of the runs of which it chooses one."""
    found = []
    for method, seed in configuration.candidates(dataset):
        folder = f"results/{dataset}/{method}/seed{seed}"
        found.append(
            {
                "method": method,
                "seed": seed,
                "objective": configuration.objective(method),
                "metrics": f"{folder}/metrics.json",
                "judged": f"{folder}/judged.parquet",
                "model": f"{folder}/model",
            }
        )
    return found


def files_of_candidates(configuration: Configuration, dataset: str, kind: str) -> Paths:
    """The files of one kind ("metrics", "judged", "model") of the candidates."""
    return [str(candidate[kind]) for candidate in candidates(configuration, dataset)]


def votes_if_any(configuration: Configuration, dataset: str) -> Paths:
    """Votes that judge classifiers, where captions of images or class scores are made."""
    return [_votes(dataset)] if configuration.has_votes(dataset) else []


def votes_of_classifier(configuration: Configuration, dataset: str, method: str) -> Paths:
    """The votes of which the classifier of a method that trains nothing is made."""
    reads = configuration.reads_caption_labels(method, dataset)
    return [_votes(dataset)] if reads else []


def selection_if_any(configuration: Configuration, dataset: str) -> Paths:
    """What select_model says of a dataset, where it chooses."""
    path = SELECTION.format(suffix=configuration.suffix).format(dataset=dataset)
    return [path] if configuration.candidates(dataset) else []


def all_selections(configuration: Configuration) -> Paths:
    """What select_model says of all datasets for which it chooses."""
    return [
        path
        for dataset in configuration.datasets
        for path in selection_if_any(configuration, dataset)
    ]


def answers(configuration: Configuration, dataset: str) -> Paths:
    """The plan and the answers of an audit: of the test split, or else of the training images.

    No rule makes them, and they may be there or not.
    """
    for split in ("test", "train"):
        found = [
            ANSWERS.format(dataset=dataset, split=split, name=name)
            for name in ("plan.parquet", "answers.jsonl")
        ]
        if all(Path(path).is_file() for path in found):
            return found
    return []


def audited_runs(configuration: Configuration, dataset: str) -> list[dict[str, Any]]:
    """What score_audit is told of the runs that it scores."""
    found = []
    for method, seed in configuration.runs(dataset):
        folder = f"results/{dataset}/{method}/seed{seed}"
        judges = configuration.objective(method) != "label_propagation"
        judged = LEFT_OUT if configuration.is_average(method) else "judged.parquet"
        found.append(
            {
                "method": method,
                "seed": seed,
                "metrics": f"{folder}/metrics.json",
                "predictions": f"{folder}/predictions.parquet",
                "judged": f"{folder}/{judged}" if judges else None,
                "has_model": judges,
            }
        )
    return found


def files_of_audited(configuration: Configuration, dataset: str, kind: str) -> Paths:
    """The files of one kind ("metrics", "predictions", "judged") of the runs that are scored."""
    return [run[kind] for run in audited_runs(configuration, dataset) if run[kind]]


def audit_if_any(configuration: Configuration, dataset: str) -> Paths:
    """What a person's answers say of the models, where some were given."""
    path = AUDIT.format(suffix=configuration.suffix).format(dataset=dataset)
    return [path] if answers(configuration, dataset) else []


def all_audits(configuration: Configuration) -> Paths:
    """What answers say of all datasets that were audited."""
    return [
        path for dataset in configuration.datasets for path in audit_if_any(configuration, dataset)
    ]


def calibrated_if_run(configuration: Configuration, dataset: str) -> Paths:
    """The calibrated zero-shot classifier, where it is a method of the run."""
    objectives = map(configuration.objective, configuration.methods_of(dataset))
    path = CLASSIFIERS.format(dataset=dataset, name="calibrated")
    return [path] if "zero_shot_calibrated" in objectives else []


def all_metrics(configuration: Configuration) -> Paths:
    """The metrics of every run."""
    return [
        f"results/{dataset}/{method}/seed{seed}/metrics.json"
        for dataset in configuration.datasets
        for method, seed in configuration.runs(dataset)
    ]


def _votes(dataset: str) -> str:
    return f"results/{dataset}/votes.parquet"


def _captions(dataset: str, kind: str) -> str:
    return f"results/{dataset}/captions/{kind}s.parquet"
