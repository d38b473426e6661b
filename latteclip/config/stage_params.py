"""The inputs and parameters of rules that follow from the configuration.

The first arguments are the configuration and the wildcards of a job. What a function returns
decides which stages a changed key reruns: it returns what its stage reads, and nothing else.
"""

import json
from pathlib import Path
from typing import Any

from latteclip.config import hub_names, source_dependencies
from latteclip.config.configuration import EYES_METHOD, HEADS, NO_CANDIDATES, Configuration

# Folder of images, generated or downloaded for a dataset: shared by all runs.
DATA = "resources/{dataset}/data"
# The files of a user's folder when it was indexed. No output: a failed job must not remove it.
FOLDER_FILES = "resources/{dataset}/folder_files.parquet"
# What is in the cache of Hugging Face for a model: shared by all datasets that name it.
MODEL_NOTE = "resources/models/{model}.json"
EYES_CLASSIFIER = "results/{dataset}/classifiers/image_prototypes_eyes.safetensors"
# Features of a dataset's images by an image model beside CLIP.
IMAGE_FEATURES = "results/{dataset}/eyes/{eye}.parquet"
# The model that is chosen for a dataset, and why. A table with its own name has its own.
SELECTION = "results/{{dataset}}/selection{suffix}.json"
SELECTED_MODEL = "results/{{dataset}}/model{suffix}"
# A person's answers about images of a split (`latteclip audit`), and how the images were drawn.
ANSWERS = "results/{dataset}/audit/{split}/{name}"
# Answers about training images, from which labels learn (`latteclip teach`).
TEACHING_ANSWERS = "results/{dataset}/answers.json"
# The scores of the dataset's models by these answers.
AUDIT = "results/{{dataset}}/audit{suffix}.json"
# Tables that a rule reads if the configuration needs them.
CAPTIONS = "results/{dataset}/captions/{kind}s.parquet"
CAPTION_SUMMARY = "results/{dataset}/captions/summary.json"
CLASS_SCORES = "results/{dataset}/class_scores.parquet"
PSEUDO_LABELS = "results/{dataset}/pseudo_labels.parquet"
FUSED_LABELS = "results/{dataset}/fused_labels.parquet"
VOTES = "results/{dataset}/votes.parquet"
LEARNING_RATE = "results/{dataset}/{method}/learning_rate.json"
# Classifiers that are made without training.
CLASSIFIERS = "results/{{dataset}}/classifiers/{name}.safetensors"
CALIBRATED = CLASSIFIERS.format(name="calibrated")
# Predictions of the trainings of an average for the images that they left out.
LEFT_OUT = "results/{dataset}/{method}/seed{seed}/left_out.parquet"
TRAIN_PREDICTIONS = "train_predictions.parquet"
# The method whose classifier comes with the labels, without training.
LABELS_METHOD = "image_prototypes"
# Sections that datasets share and a page prints, in its order.
SECTIONS = (
    *("split", "prompts", "clip", "inference", "captioner", "captions", "scores", "selection"),
    *("unknown", "groups", "compute", "processes"),
)
DESCRIBED = ("title", "licence", "citation", "source", "class_synonyms")
# Stages whose benchmarks a page reads: those of a dataset, and those of a run.
CAPTIONING = ("caption_images", "caption_groups", "score_classes")
OF_DATASET = (
    *("index_images", "find_duplicates", "pseudo_label_images", "calibrate_zero_shot", *CAPTIONING),
    *("fuse_labels", "score_unknown", "select_model"),
)
OF_RUN = (
    *("finetune", "average_weights", "propagate_labels", "evaluate", "evaluate_classifier"),
    "assemble_model",
)
Paths = list[str]
Settings = dict[str, Any]


# Sources and models.


def data_folder(configuration: Configuration, dataset: str) -> str:
    """Return the user's own folder, or the one that a rule makes."""
    made = DATA.format(dataset=configuration.whole(dataset))
    return str(configuration.dataset(dataset)["source"].get("folder", made))


def made_folder(configuration: Configuration, dataset: str) -> Paths:
    """Return the folder of images if a rule makes it."""
    is_made = "folder" not in configuration.dataset(dataset)["source"]
    return [data_folder(configuration, dataset)] if is_made else []


def download_dataset(configuration: Configuration, dataset: str) -> Settings:
    """Return the files to download, and their terms of use."""
    values = configuration.dataset(dataset)
    terms = ("title", "licence", "citation")
    files = {"downloads": values["source"]["downloads"]}
    return files | {key: values[key] for key in terms if key in values}


def index_images(configuration: Configuration, dataset: str) -> Settings:
    """Return how the dataset's folder is read, and how many images are drawn in a limited run."""
    values = configuration.section("split", dataset)
    return values if configuration.limit is None else {**values, "limit": configuration.limit}


def hub_model(configuration: Configuration, dataset: str, section: str) -> Paths:
    """Return the note on the model of section "clip" or "captioner" if it comes from the hub."""
    names = configuration.hub_model(section, dataset)
    return [MODEL_NOTE.format(model=hub_names.slug(names))] if names else []


# Code that the configuration chooses by name.


def engine_code(configuration: Configuration, dataset: str) -> Paths:
    """Return the sources of the engine that writes a dataset's captions and scores its classes."""
    engine = configuration.section("captioner", dataset)["engine"]
    return source_dependencies.sources(f"latteclip.captions.engines.{engine}")


def objective_code(configuration: Configuration, method: str) -> Paths:
    """Return the sources of a method's objective."""
    module = configuration.objective(method).removesuffix("_supervised")
    return source_dependencies.sources(f"latteclip.train.objectives.{module}")


# Captions and class scores.


def answer_store(configuration: Configuration, dataset: str, kind: str) -> str:
    """Return the folder of the cached answers about "images", "groups" or "scores"."""
    return f"resources/{configuration.whole(dataset)}/captions/{kind}"


def user_file(configuration: Configuration, dataset: str, key: str) -> Paths:
    """Return the user's file that a key such as "scores.file" names if it is in use."""
    files = configuration.user_files(dataset)
    return [files[key]] if key in files else []


def scores(configuration: Configuration, dataset: str) -> Settings:
    """Return how classes are scored, with the prompt of a likelihood."""
    values = configuration.section("scores", dataset)
    prompt = configuration.section("prompts", dataset)["image"]
    return {**values, "prompt": prompt if values["kind"] == "likelihood" else ""}


def shards(configuration: Configuration, dataset: str, kind: str) -> Paths:
    """Return the shards of "images", "groups" or "class_scores"."""
    n = configuration.shards(dataset)
    folder = f"results/{dataset}/captions/shards"
    return [f"{folder}/{kind}-{i}-of-{n}.parquet" for i in range(1, n + 1)]


def captions_in_use(configuration: Configuration, dataset: str) -> Paths:
    """Return the tables of captions that some method of the run needs."""
    kinds = configuration.caption_kinds(dataset)
    return [CAPTIONS.format(dataset=dataset, kind=kind) for kind in kinds]


# Labels, classifiers and trainings.


def pseudo_label_images(configuration: Configuration, dataset: str) -> Settings:
    """Return the CLIP model, the class templates, and how images are encoded."""
    return {
        **configuration.section("clip", dataset),
        **configuration.section("inference", dataset),
        **_class_words(configuration, dataset),
    }


def eye_model(configuration: Configuration, eye: str) -> Paths:
    """Return the note on an image model beside CLIP if it comes from the hub."""
    return [MODEL_NOTE.format(model=eye)] if eye in configuration.hub_eyes() else []


def encode_images(configuration: Configuration, dataset: str, eye: str) -> Settings:
    """Return an image model beside CLIP, and how images are encoded."""
    return {
        "model": configuration.eyes[eye],
        "batch_size": configuration.section("inference", dataset)["batch_size"],
        "precision": configuration.section("clip", dataset)["precision"],
    }


def image_features(configuration: Configuration, dataset: str) -> Paths:
    """Return the features of the images by each image model beside CLIP."""
    return [IMAGE_FEATURES.format(dataset=dataset, eye=eye) for eye in configuration.eyes]


def image_features_of_method(configuration: Configuration, dataset: str, method: str) -> Paths:
    """Return the features by other image models if the method's classifier reads them."""
    reads = configuration.objective(method) == EYES_METHOD
    return image_features(configuration, dataset) if reads else []


def fused_labels_of_page(configuration: Configuration, dataset: str) -> Paths:
    """Return the fused labels if image models beside CLIP or a person helped to make them."""
    methods = configuration.methods_of(dataset)
    fused = any(configuration.reads_fused_labels(method, dataset) for method in methods)
    has_help = configuration.eyes or teaching_answers(configuration, dataset)
    return [FUSED_LABELS.format(dataset=dataset)] if has_help and fused else []


def eyes_classifier(configuration: Configuration) -> dict[str, str]:
    """Return the further output of fuse_labels where there are image models beside CLIP."""
    return {"eyes_prototypes": EYES_CLASSIFIER} if configuration.eyes else {}


def assemble_model(configuration: Configuration, dataset: str, method: str) -> Settings:
    """Return the CLIP model, and the image models beside it if the method predicts by them."""
    reads = configuration.objective(method) == EYES_METHOD
    eyes = {"eyes": list(configuration.eyes.values())} if reads else {}
    return {**configuration.section("clip", dataset), **eyes}


def models_to_assemble(configuration: Configuration, method: str) -> Paths:
    """Return the notes on image models of the hub that the method's model folder contains."""
    reads = configuration.objective(method) == EYES_METHOD
    return [MODEL_NOTE.format(model=eye) for eye in configuration.hub_eyes() if reads]


def fuse_labels(configuration: Configuration, dataset: str) -> Settings:
    """Return the CLIP model that encodes the captions, and the batch size."""
    return {
        **configuration.section("clip", dataset),
        "batch_size": configuration.section("inference", dataset)["batch_size"],
    }


def image_prototypes_of_method(configuration: Configuration, dataset: str, method: str) -> Paths:
    """Return the classifier from which LatteCLIP's prototypes start if it is not the texts."""
    starts = configuration.method(method, dataset).get("prototypes", "text") == "image"
    is_latteclip = configuration.objective(method) == "latteclip"
    return [_image_prototypes(configuration, dataset, method)] if starts and is_latteclip else []


def classifier_of_method(configuration: Configuration, dataset: str, method: str) -> str:
    """Return the classifier of a method without training."""
    if configuration.objective(method) == "zero_shot":
        return f"results/{dataset}/class_embeddings.safetensors"
    if configuration.objective(method) == "image_prototypes":
        return _image_prototypes(configuration, dataset, method)
    if configuration.objective(method) == EYES_METHOD:
        return EYES_CLASSIFIER.format(dataset=dataset)
    return CALIBRATED.format(dataset=dataset)


def fold(configuration: Configuration, dataset: str, seed: str) -> Settings:
    """Return which training images a seed leaves out, the same for all seeds if none are."""
    share = float(configuration.section("selection", dataset)["share"])
    if not share:
        return {"share": 0.0, "number": 0, "count": 1}
    seeds = configuration.seeds
    # A seed outside the run, whose model a user asks for by its path, has a fold too.
    number = seeds.index(int(seed)) if int(seed) in seeds else int(seed) % len(seeds)
    return {"share": share, "number": number, "count": len(seeds)}


def finetune(configuration: Configuration, dataset: str, method: str, seed: str) -> Settings:
    """Return the CLIP model, the method, and how the training is computed."""
    values = configuration.method(method, dataset)
    return {
        **configuration.section("clip", dataset),
        **_class_words(configuration, dataset),
        "objective": values["objective"],
        "pseudo_labels": values.get("pseudo_labels", "zero_shot"),
        "prototypes": values.get("prototypes", "text"),
        "head": values.get("head", "tuned"),
        "switches": values.get("switches", {}),
        "finetune": values["finetune"],
        "compute": configuration.section("compute", dataset),
        "fold": fold(configuration, dataset, seed),
    }


def find_learning_rate(configuration: Configuration, dataset: str, method: str) -> Settings:
    """Return the settings of the training without its fold and head."""
    values = finetune(configuration, dataset, method, "0")
    return {key: value for key, value in values.items() if key not in ("fold", "head")}


def finetune_command(configuration: Configuration, dataset: str) -> str:
    """Return the program of finetune: one process, or several under torchrun, each on a GPU."""
    processes = configuration.section("processes", dataset)["finetune"]
    if processes == 1:
        return "latteclip"
    claim = f"python -m latteclip.core.gpus {processes}"
    return f"{claim} torchrun --standalone --nproc-per-node {processes} -m -- latteclip"


def averaged(configuration: Configuration, dataset: str, method: str) -> list[dict[str, str]]:
    """Return the files of each training that average_weights averages."""
    folder = f"results/{dataset}/{configuration.averaged(method)}"
    names = {"model": "model", "history": "history.parquet", "train_predictions": TRAIN_PREDICTIONS}
    return [
        {kind: f"{folder}/seed{seed}/{name}" for kind, name in names.items()}
        for seed in configuration.seeds
    ]


# Evaluation and the choice of a model.


def evaluate(configuration: Configuration, dataset: str, method: str, seed: str) -> Settings:
    """Return how images are encoded, how many classes are kept, and which images were left out.

    An average left none out: each of its trainings left out others.
    """
    has_fold = not configuration.is_average(method)
    return {
        **configuration.section("inference", dataset),
        "precision": configuration.section("clip", dataset)["precision"],
        **({"fold": fold(configuration, dataset, seed)} if has_fold else {}),
    }


def evaluate_classifier(configuration: Configuration, dataset: str, method: str) -> Settings:
    """Return how many classes are kept for each image, and the marks of the method."""
    is_in_paper = configuration.objective(method) == "zero_shot"
    topk = configuration.section("inference", dataset)["topk"]
    return {"topk": topk, "marks": [] if is_in_paper else ["ours"]}


def propagate_labels(configuration: Configuration, dataset: str, method: str) -> Settings:
    """Return the graph of the images, and how many classes are kept for each."""
    graph = configuration.method(method, dataset).get("graph", {})
    return {**graph, "topk": configuration.section("inference", dataset)["topk"]}


def candidates(configuration: Configuration, dataset: str) -> list[dict[str, Any]]:
    """Return the runs among which select_model chooses."""
    found = []
    for method, seed in configuration.candidates(dataset):
        folder = f"results/{dataset}/{method}/seed{seed}"
        found.append(
            {
                "method": method,
                "seed": seed,
                "objective": configuration.objective(method),
                "metrics": f"{folder}/metrics.json",
                "train_predictions": f"{folder}/{TRAIN_PREDICTIONS}",
                "model": f"{folder}/model",
            }
        )
    return found


def selection_if_any(configuration: Configuration, dataset: str) -> Paths:
    """Return the output of select_model for a dataset for which it chooses."""
    path = SELECTION.format(suffix=configuration.suffix).format(dataset=dataset)
    return [path] if configuration.candidates(dataset) else []


def all_selections(configuration: Configuration) -> Paths:
    """Return the output of select_model for all datasets for which it chooses."""
    return [
        path
        for dataset in configuration.datasets
        for path in selection_if_any(configuration, dataset)
    ]


def all_metrics(configuration: Configuration) -> Paths:
    """Return the metrics of every run."""
    return [
        f"results/{dataset}/{method}/seed{seed}/metrics.json"
        for dataset in configuration.datasets
        for method, seed in configuration.runs(dataset)
    ]


def models_of_heads(configuration: Configuration) -> Paths:
    """Return the model folders of the methods that have a classifier without training."""
    return [
        f"results/{dataset}/{method}/seed0/model"
        for dataset in configuration.datasets
        for method in configuration.methods_of(dataset)
        if configuration.objective(method) in HEADS
    ]


def labels(configuration: Configuration) -> Paths:
    """Return the files of the target `labels`: labels and a classifier, without training.

    Captions or class scores are made for them, whether or not a method of the run reads them.
    """
    names = ("fused_labels.parquet", "unknown.parquet", f"{LABELS_METHOD}/seed0/model")
    return [f"results/{dataset}/{name}" for dataset in configuration.datasets for name in names]


# Answers.


def teaching_answers(_: Configuration, dataset: str) -> Paths:
    """Return a person's answers from which the labels learn, if there are any; no rule does."""
    path = TEACHING_ANSWERS.format(dataset=dataset)
    return [path] if Path(path).is_file() else []


def answers(configuration: Configuration, dataset: str) -> Paths:
    """Return the plan and the answers of an audit, if there are any.

    Those about the test split come before those about the training images. No rule makes them.
    """
    for split in ("test", "train"):
        found = [
            ANSWERS.format(dataset=dataset, split=split, name=name)
            for name in ("plan.parquet", "answers.json")
        ]
        if all(Path(path).is_file() for path in found):
            return found
    return []


def audited_runs(configuration: Configuration, dataset: str) -> list[dict[str, Any]]:
    """Return the runs that score_audit scores."""
    found = []
    for method, seed in configuration.runs(dataset):
        folder = f"results/{dataset}/{method}/seed{seed}"
        has_model = configuration.objective(method) != "label_propagation"
        held_out = f"{folder}/{TRAIN_PREDICTIONS}"
        if configuration.is_average(method):
            held_out = LEFT_OUT.format(dataset=dataset, method=method, seed=seed)
        found.append(
            {
                "method": method,
                "seed": seed,
                "metrics": f"{folder}/metrics.json",
                "predictions": f"{folder}/predictions.parquet",
                "train_predictions": held_out if has_model else None,
                "has_model": has_model,
            }
        )
    return found


def audit_if_any(configuration: Configuration, dataset: str) -> Paths:
    """Return the scores of a dataset's models by an audit if there was one."""
    path = AUDIT.format(suffix=configuration.suffix).format(dataset=dataset)
    return [path] if answers(configuration, dataset) else []


def all_audits(configuration: Configuration) -> Paths:
    """Return the scores by audits of all datasets that were audited."""
    return [
        path for dataset in configuration.datasets for path in audit_if_any(configuration, dataset)
    ]


def all_taught_labels(configuration: Configuration) -> Paths:
    """Return the fused labels of the datasets about which a person answered."""
    return [
        path
        for dataset in configuration.datasets
        if teaching_answers(configuration, dataset)
        for path in fused_labels_of_page(configuration, dataset)
    ]


# Pages.


def main_method(configuration: Configuration, dataset: str) -> str:
    """Return the method of a page without a chosen model: the last one that can be chosen."""
    methods = configuration.methods_of(dataset)
    able = [m for m in methods if configuration.objective(m) not in NO_CANDIDATES]
    return (able or methods)[-1]


def paper_method(configuration: Configuration, dataset: str) -> str | None:
    """Return the method of the paper if it is run: the first LatteCLIP that is like no other."""
    return next(
        (
            method
            for method in configuration.methods_of(dataset)
            if configuration.objective(method) == "latteclip"
            and "like" not in configuration.config["methods"][method]
        ),
        None,
    )


def page_runs(configuration: Configuration, dataset: str) -> list[dict[str, Any]]:
    """Return the files that a page reads of each run: any of them may be the chosen one."""
    found = []
    for method, seed in configuration.runs(dataset):
        folder = f"results/{dataset}/{method}/seed{seed}"
        run = {"method": method, "seed": seed, "metrics": f"{folder}/metrics.json"}
        run["predictions"] = f"{folder}/predictions.parquet"
        if configuration.is_trained(method):
            run["history"] = f"{folder}/history.parquet"
        if configuration.objective(method) != "label_propagation":
            run["train_predictions"] = f"{folder}/{TRAIN_PREDICTIONS}"
        found.append(run)
    return found


def benchmarks(configuration: Configuration, dataset: str) -> list[dict[str, str]]:
    """Return the rule, the run and the path of each of Snakemake's benchmark files.

    They are no inputs, since a missing one must rerun nothing.
    """
    folder = f"results/{dataset}"
    n = configuration.shards(dataset)
    numbered = [f"-{i}-of-{n}" for i in range(1, n + 1)] if n > 1 else [""]
    files = [
        (stage, "", f"{folder}/benchmarks/{stage}{shard}.jsonl")
        for stage in OF_DATASET
        for shard in (numbered if stage in CAPTIONING else [""])
    ]
    runs = dict.fromkeys((*configuration.trainings(dataset), *configuration.runs(dataset)))
    for method in dict.fromkeys(method for method, _ in runs):
        name = "find_learning_rate"
        files.append((name, method, f"{folder}/{method}/benchmarks/{name}.jsonl"))
    files += [
        (stage, f"{method}, seed {seed}", f"{folder}/{method}/seed{seed}/benchmarks/{stage}.jsonl")
        for method, seed in runs
        for stage in OF_RUN
    ]
    return [{"rule": rule, "run": run, "path": path} for rule, run, path in files]


def resolved_config(configuration: Configuration, dataset: str) -> Settings:
    """Return the configuration of a dataset, resolved, in the order in which it is read."""
    file = configuration.dataset(dataset)
    methods = {}
    for method in configuration.methods_of(dataset):
        like = configuration.config["methods"][method].get("like")
        values = configuration.method(method, dataset)
        methods[method] = {"like": like, **values} if like else values
    return {
        "dataset": dataset,
        **({} if configuration.limit is None else {"limit": configuration.limit}),
        "seeds": configuration.seeds,
        **{key: file[key] for key in DESCRIBED if key in file},
        "template": configuration.template(dataset),
        **{name: configuration.section(name, dataset) for name in (*SECTIONS, "threads")},
        "methods": methods,
    }


def report_dataset(configuration: Configuration, dataset: str) -> str:
    """Return the settings of the page of a dataset, as JSON in the order in which it is read."""
    values = {
        "dataset": dataset,
        "baseline": configuration.table["baseline"],
        "main": main_method(configuration, dataset),
        "paper": paper_method(configuration, dataset),
        "suffix": configuration.suffix,
        "overview": overview(configuration),
        "config": resolved_config(configuration, dataset),
        "benchmarks": benchmarks(configuration, dataset),
    }
    return json.dumps(values, ensure_ascii=False)


def others(configuration: Configuration) -> str:
    """Return the option that adds the datasets of earlier runs to the main table and its page.

    They are no inputs: a table does not remake the results of earlier runs.
    """
    is_main = not configuration.suffix and configuration.limit is None
    return "--others results" if is_main else ""


def overview(configuration: Configuration) -> str:
    """Return the file below results that is the page over all datasets."""
    return f"index{configuration.suffix}{configuration.limit_suffix}.html"


def index_results(configuration: Configuration) -> Settings:
    """Return the pages and titles of the datasets for the page over all of them."""
    datasets = configuration.datasets
    titles = {key: one.get("title", "") for key, one in configuration.config["datasets"].items()}
    return {
        "baseline": configuration.table["baseline"],
        "reports": {key: f"{key}/report{configuration.suffix}.html" for key in datasets},
        "titles": {key: title for key, title in titles.items() if title},
    }


def _class_words(configuration: Configuration, dataset: str) -> Settings:
    """Return the class templates, and the synonyms if there are any."""
    synonyms = configuration.dataset(dataset).get("class_synonyms")
    words = {"template": configuration.template(dataset)}
    return {**words, "class_synonyms": synonyms} if synonyms else words


def _image_prototypes(configuration: Configuration, dataset: str, method: str) -> str:
    """Return the image prototypes, by captions if the method reads labels by captions."""
    fused = configuration.reads_fused_labels(method, dataset)
    name = "image_prototypes" if fused else "image_prototypes_by_zero_shot"
    return CLASSIFIERS.format(name=name).format(dataset=dataset)
