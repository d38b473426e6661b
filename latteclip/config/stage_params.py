"""The inputs and parameters of rules that follow from the configuration.

The arguments are the configuration, the wildcards that the rule names, and values that the rule
gives: `given(stage_params.hub_model, "dataset", section="clip")`. What a function returns decides
which stages a changed key reruns: it returns what its stage reads, and nothing else.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from latteclip.config import hub_names, methods
from latteclip.config.asking import Asking
from latteclip.config.configuration import Configuration
from latteclip.config.methods import OBJECTIVES
from latteclip.config.model import Shared
from latteclip.config.sections.training import TrainingSection
from latteclip.config.voters import VoterOfDataset
from latteclip.core import file_names
from latteclip.core.class_templates import PLACE
from latteclip.core.file_names import ACTIONS, PROPOSAL, edited_classes, folders_in
from latteclip.core.hashing import fingerprint

# What is in the cache of Hugging Face for a model: shared by all datasets that name it.
MODEL_NOTE = "resources/models/{model}.json"
# A link to the user's folder, by which an index names the images.
FOLDER_LINK = "resources/{dataset}/folder"
# Predictions of the trainings of an average for the images that they left out.
LEFT_OUT = "results/{dataset}/{method}/seed{seed}/left_out.parquet"
# Files of a run that are not Parquet, by their kinds.
FILES = {"metrics": "metrics.json", "model": "model"}
DESCRIBED = ("title", "licence", "citation", "source", "class_synonyms")
Paths = list[str]
Settings = dict[str, Any]


# Sources and models.


def made_folder(configuration: Configuration, dataset: str) -> Paths:
    """Return the folder of images, shared by all runs, if a rule makes it."""
    is_made = "folder" not in configuration.dataset(dataset)["source"]
    return [f"resources/{configuration.whole(dataset)}/data"] if is_made else []


def download_dataset(configuration: Configuration, dataset: str) -> Settings:
    """Return the files to download, and their terms of use."""
    values = configuration.dataset(dataset)
    terms = [key for key in ("title", "licence", "citation") if key in values]
    return {
        "downloads": values["source"]["downloads"],
        **{key: values[key] for key in terms},
    }


def limit(configuration: Configuration) -> str:
    """Return the option that says how many images of each split a limited run draws."""
    return "" if configuration.limit is None else f"--limit {configuration.limit}"


def hub_model(
    configuration: Configuration, dataset: str, section: str, voter: str = ""
) -> Paths:
    """Return the note on the model of section "clip" or "captioner" if it comes from the hub."""
    names = configuration.hub_model(section, dataset, voter)
    return [MODEL_NOTE.format(model=hub_names.slug(names))] if names else []


# Local models, by their content: times of files that were moved or copied say nothing. No command
# reads these parameters, but another model in the same folder reruns its jobs.


@cache  # all jobs of a run have the same models
def _fingerprint(path: str | None) -> str:
    return fingerprint(path) if path and os.path.exists(path) else ""


def local_clip(configuration: Configuration, dataset: str, voter: str = "") -> str:
    """Return a digest of the CLIP model if it is a folder or a file."""
    return _fingerprint(hub_names.local_clip(configuration.section("clip", dataset, voter)))


def local_captioner(configuration: Configuration, dataset: str, voter: str = "") -> str:
    """Return a digest of the captioner's model if it is a folder."""
    if not configuration.engine(dataset, voter).loads_model:
        return ""
    model = configuration.section("captioner", dataset, voter)["model"]
    return _fingerprint(model) if os.path.isdir(model) else ""


def local_encoder(configuration: Configuration, encoder: str) -> str:
    """Return a digest of an image encoder beside CLIP if it is a folder."""
    return _fingerprint(hub_names.local_folder(configuration.image_encoders[encoder]))


def local_encoders(configuration: Configuration, method: str) -> str:
    """Return the digests of the image encoders that the method's model folder contains."""
    image_encoders = (
        configuration.image_encoders if configuration.reads_encoders(method) else ()
    )
    return " ".join(local_encoder(configuration, encoder) for encoder in image_encoders)


# Captions, class scores and labels.


def answer_store(configuration: Configuration, dataset: str, kind: str) -> str:
    """Return the folder of the cached answers about "images", "names" and so on."""
    return f"resources/{configuration.whole(dataset)}/captions/{kind}"


def user_file(
    configuration: Configuration, dataset: str, key: str, voter: str = ""
) -> Paths:
    """Return the file that a key such as "scores.file" names if it replaces the captioner."""
    section, name = key.split(".")
    file = configuration.section(section, dataset, voter)[name]
    is_used = configuration.engine(dataset, voter).reads_file
    return [file] if is_used and file is not None else []


def image_prompt(configuration: Configuration, dataset: str, voter: str = "") -> str:
    """Return the prompt about one image."""
    return str(configuration.section("prompts", dataset, voter)["image"])


def names_classes(configuration: Configuration, dataset: str, voter: str = "") -> bool:
    """Return whether the prompt about one image names its pseudo-label."""
    return PLACE in image_prompt(configuration, dataset, voter)


def scores_prompt(configuration: Configuration, dataset: str, voter: str = "") -> str:
    """Return the question whose answers are scored; letters have a question of their own."""
    kind = configuration.section("scores", dataset, voter)["kind"]
    return image_prompt(configuration, dataset, voter) if kind == "likelihood" else ""


def scores(configuration: Configuration, dataset: str, voter: str = "") -> Settings:
    """Return how classes are scored."""
    return dict(configuration.section("scores", dataset, voter))


def captioner(configuration: Configuration, dataset: str, voter: str = "") -> Settings:
    """Return the captioner, with what its stages ask of the engine.

    Its `max_images` are of captions, and `caption_writer` has them.
    """
    return {**caption_writer(configuration, dataset, voter), "max_images": None}


def caption_writer(configuration: Configuration, dataset: str, voter: str = "") -> Settings:
    """Return the captioner that writes captions."""
    engine = configuration.engine(dataset, voter)
    values = configuration.section("captioner", dataset, voter)
    of_engine = {"loads_model": engine.loads_model, "reads_file": engine.reads_file}
    return {**values, **of_engine}


def caption_labels(configuration: Configuration, dataset: str, voter: str = "") -> Paths:
    """Return the pseudo-labels if captions of images need them: for the prompt or the order."""
    labels = f"results/{dataset}/pseudo_labels.parquet"
    chosen = chosen_by(configuration, dataset, file_names.IMAGES, voter)
    return [labels] if chosen or names_classes(configuration, dataset, voter) else []


def chosen_by(
    configuration: Configuration, dataset: str, kind: str, voter: str = ""
) -> Paths:
    """Return the classifier that chooses images if a captioner is not asked about all."""
    if _max_images(configuration, dataset, kind, voter) is None:
        return []
    return [f"results/{dataset}/{methods.ADAPTED}"]


def person_answers(
    configuration: Configuration, dataset: str, kind: str, voter: str = ""
) -> str:
    """Return the option with a person's answers if a captioner is not asked about all images.

    They are no input: an answer after the questions reruns nothing, and asks nothing.
    """
    if _max_images(configuration, dataset, kind, voter) is None:
        return ""
    return f"--answers results/{dataset}/answers.json"


def _max_images(
    configuration: Configuration, dataset: str, kind: str, voter: str
) -> int | None:
    is_asked = not configuration.engine(dataset, voter).reads_file
    asking = Asking(kind, voter)
    return asking.max_images(configuration, dataset) if is_asked else None


def name_images(configuration: Configuration, dataset: str) -> Settings:
    """Return the captioner as it is asked for a name."""
    values = configuration.section("discover", dataset)
    named = {
        **caption_writer(configuration, dataset),
        "max_new_tokens": values["max_new_tokens"],
    }
    return named if values["file"] is None else {**named, "images_file": values["file"]}


def names_file(configuration: Configuration, dataset: str) -> Paths:
    """Return the user's names of images, or else captions, if they replace the captioner."""
    file = name_images(configuration, dataset)["images_file"]
    is_used = configuration.engine(dataset).reads_file
    return [file] if is_used and file is not None else []


def propose_classes(configuration: Configuration, dataset: str) -> Settings:
    """Return how many classes are proposed."""
    return _part(configuration, "discover", dataset, "classes")


def class_actions(_: Configuration, dataset: str) -> Paths:
    """Return what a person did to the proposed classes, if `latteclip classes` wrote it."""
    path = f"results/{dataset}/{ACTIONS}"
    return [path] if Path(path).is_file() else []


def proposes_classes(configuration: Configuration, dataset: str) -> bool:
    """Return whether a stage writes classes.txt. After an edit by hand, no stage does."""
    is_wanted = configuration.discovers(dataset)
    return is_wanted and edited_classes(f"results/{dataset}") is None


def examples_folder(configuration: Configuration, dataset: str) -> str:
    """Return the folder of images of known classes that are not in the dataset, or ""."""
    return str(configuration.section("split", dataset).get("examples") or "")


def examples(configuration: Configuration, dataset: str) -> Paths:
    """Return the features of these images, if there are some."""
    has_some = examples_folder(configuration, dataset)
    return [f"results/{dataset}/examples.parquet"] if has_some else []


def example_classes(configuration: Configuration, dataset: str) -> Paths:
    """Return the classes of these images. No command reads them, but a new one reruns the index."""
    folder = examples_folder(configuration, dataset)
    return folders_in(folder) if os.path.isdir(folder) else []


def example_images(configuration: Configuration, dataset: str) -> str:
    """Return a digest of these images. No command reads it, but a new image reruns its job."""
    return _fingerprint(examples_folder(configuration, dataset))


def encode_examples(configuration: Configuration, dataset: str) -> Settings:
    """Return the folder of these images, the models that encode them, and the batch size."""
    split = configuration.section("split", dataset)
    return {
        "examples_folder": examples_folder(configuration, dataset),
        "replacements": split.get("classname_replace", {"_": " "}),
        "clip": configuration.section("clip", dataset),
        "encoders": list(configuration.image_encoders.values()),
        "inference": _part(configuration, "inference", dataset, "batch_size"),
    }


def example_models(configuration: Configuration, dataset: str) -> Paths:
    """Return the notes on the models of the hub that encode these images."""
    notes = [MODEL_NOTE.format(model=encoder) for encoder in configuration.hub_encoders()]
    return [*hub_model(configuration, dataset, "clip"), *notes]


def shards(configuration: Configuration, dataset: str, kind: str) -> Paths:
    """Return the shards of "images", "groups" or "class_scores"."""
    n = configuration.shards(dataset)
    folder = f"results/{dataset}/captions/shards"
    return [f"{folder}/{kind}-{i}-of-{n}.parquet" for i in range(1, n + 1)]


def captions(configuration: Configuration, dataset: str, kind: str = "") -> Paths:
    """Return the table of captions of "image" or "group", or both, if some method needs them."""
    wanted = [each for each in configuration.caption_kinds(dataset) if kind in ("", each)]
    return [_captions(dataset, each) for each in wanted]


def training_captions(
    configuration: Configuration, dataset: str, method: str, kind: str
) -> Paths:
    """Return the table of captions of a kind if the method trains on them."""
    is_read = configuration.reads_captions(method, kind, dataset)
    return [_captions(dataset, kind)] if is_read else []


def _captions(dataset: str, kind: str) -> str:
    return f"results/{dataset}/{file_names.TABLES[kind + 's']}"


def pseudo_label_images(
    configuration: Configuration, dataset: str, voter: str = ""
) -> Settings:
    """Return the CLIP model, the class templates, and how images are encoded."""
    return {
        "clip": configuration.section("clip", dataset, voter),
        "inference": configuration.section("inference", dataset),
        "class_texts": _class_texts(configuration, dataset),
    }


def encode_images(configuration: Configuration, dataset: str, encoder: str) -> Settings:
    """Return an image encoder beside CLIP, and how images are encoded."""
    return {
        "encoder": configuration.image_encoders[encoder],
        **encoding(configuration, dataset),
    }


def encoding(configuration: Configuration, dataset: str) -> Settings:
    """Return how images are encoded."""
    return {
        "clip": _part(configuration, "clip", dataset, "precision"),
        "inference": _part(configuration, "inference", dataset, "batch_size"),
    }


def clip_encoder(configuration: Configuration, dataset: str) -> Settings:
    """Return the CLIP model that encodes captions or images, and the batch size."""
    return {
        "clip": configuration.section("clip", dataset),
        "inference": _part(configuration, "inference", dataset, "batch_size"),
    }


def labellers(configuration: Configuration, dataset: str) -> list[Settings]:
    """Return the labellers of a dataset with the tables of their votes."""
    settings = []
    for voter in configuration.voters(dataset):
        folder = f"results/{dataset}"
        answers = f"{folder}/{voter.table}" if voter.record.asks else None
        values = {"name": voter.name, "kind": voter.kind, "column": voter.column}
        settings.append({**values, "table": f"{folder}/{voter.votes}", "answers": answers})
    return settings


def write_votes(configuration: Configuration, dataset: str, voter: str) -> Settings:
    """Return what a labeller whose votes no captioner writes needs: its file, or a CLIP model."""
    one = _voter(configuration, dataset, voter)
    if one.record.asks is not None:
        encoder = clip_encoder(configuration, dataset)
        return {"name": voter, "kind": one.kind, "captions": encoder}
    entry = configuration.voter_entry(dataset, voter)
    values = {key: entry[key] for key in ("name", "kind", "file", "share") if key in entry}
    if one.record.loads_clip:
        values["zero_shot"] = pseudo_label_images(configuration, dataset, voter)
    return values


def votes_inputs(configuration: Configuration, dataset: str, voter: str) -> Paths:
    """Return the captions that a labeller's votes follow from, and the class embeddings."""
    one = _voter(configuration, dataset, voter)
    if one.record.asks is None:
        return []
    folder = f"results/{dataset}"
    return [f"{folder}/{one.table}", f"{folder}/class_embeddings.safetensors"]


def votes_file(configuration: Configuration, dataset: str, voter: str) -> Paths:
    """Return the user's file with the votes of a labeller."""
    if _voter(configuration, dataset, voter).record.asks is not None:
        return []
    file = configuration.voter_entry(dataset, voter).get("file")
    return [] if file is None else [file]


def votes_model(configuration: Configuration, dataset: str, voter: str) -> Paths:
    """Return the note on the CLIP model of a labeller's votes if it comes from the hub."""
    record = _voter(configuration, dataset, voter).record
    if record.asks is None and not record.loads_clip:
        return []
    other = voter if record.loads_clip else ""
    return hub_model(configuration, dataset, "clip", other)


def votes_clip(configuration: Configuration, dataset: str, voter: str) -> str:
    """Return a digest of that CLIP model if it is a folder or a file."""
    record = _voter(configuration, dataset, voter).record
    return local_clip(configuration, dataset, voter if record.loads_clip else "")


def _voter(configuration: Configuration, dataset: str, voter: str) -> VoterOfDataset:
    return next(one for one in configuration.voters(dataset) if one.name == voter)


def asking_voters(configuration: Configuration, asks: str) -> list[str]:
    """Return the names of the labellers whose answers a job of their own writes."""
    voters = [v for d in configuration.datasets for v in configuration.own_voters(d)]
    return sorted({voter.name for voter in voters if voter.record.asks == asks})


def writing_voters(configuration: Configuration) -> list[str]:
    """Return the names of the labellers whose votes `write_votes` writes."""
    voters = [v for d in configuration.datasets for v in configuration.voters(d)]
    return sorted({voter.name for voter in voters if voter.writes_votes})


def image_features(configuration: Configuration, dataset: str, method: str = "") -> Paths:
    """Return the features by image encoders beside CLIP: all, or those that a method reads."""
    image_encoders = (
        configuration.image_encoders
        if not method or configuration.reads_encoders(method)
        else ()
    )
    return [
        f"results/{dataset}/image_encoders/{encoder}.parquet" for encoder in image_encoders
    ]


def shows_fused_labels(configuration: Configuration, dataset: str) -> bool:
    """Return whether a page shows fused labels: whether one of its methods reads them."""
    run = configuration.methods_of(dataset)
    return any(configuration.reads_fused_labels(method, dataset) for method in run)


def teaching_answers(_: Configuration, dataset: str) -> Paths:
    """Return a person's answers from which the labels learn, if `latteclip teach` wrote some."""
    path = f"results/{dataset}/answers.json"
    return [path] if Path(path).is_file() else []


# Classifiers and trainings.


def assemble_model(configuration: Configuration, dataset: str, method: str) -> Settings:
    """Return the CLIP model, and the image encoders beside it if the method predicts by them."""
    values = {"clip": configuration.section("clip", dataset)}
    if not configuration.reads_encoders(method):
        return values
    return {**values, "encoders": list(configuration.image_encoders.values())}


def models_to_assemble(configuration: Configuration, method: str) -> Paths:
    """Return the notes on image encoders of the hub that the method's model folder contains."""
    image_encoders = (
        configuration.hub_encoders() if configuration.reads_encoders(method) else ()
    )
    return [MODEL_NOTE.format(model=encoder) for encoder in image_encoders]


def image_prototypes_of_method(
    configuration: Configuration, dataset: str, method: str
) -> Paths:
    """Return the classifier from which LatteCLIP's prototypes start if it is not the texts."""
    values = configuration.method(method, dataset)
    if (
        values.get("prototypes") != "image"
        or not OBJECTIVES[values["objective"]].has_prototypes
    ):
        return []
    fused = configuration.reads_fused_labels(method, dataset)
    objective = OBJECTIVES["image_prototypes" if fused else "zero_shot_adapted"]
    return [f"results/{dataset}/{objective.classifier}"]


def classifier_of_method(configuration: Configuration, dataset: str, method: str) -> str:
    """Return the classifier of a method without training.

    Where it takes pseudo-labels and these are not fused, it is the adapted one.
    """
    objective = configuration.objective(method)
    fused = configuration.reads_fused_labels(method, dataset)
    file = (
        methods.ADAPTED if objective.pseudo_labels and not fused else objective.classifier
    )
    return f"results/{dataset}/{file}"


def decoded_images(configuration: Configuration, dataset: str) -> str:
    """Return the folder of resized images that all trainings share, until a run ends."""
    return f"resources/{configuration.whole(dataset)}/decoded"


def fold(configuration: Configuration, dataset: str, seed: str) -> Settings:
    """Return which training images a seed leaves out: another part for each seed of the run."""
    share = float(configuration.section("selection", dataset)["share"])
    if not share:
        return {"share": 0.0, "number": 0}
    seeds = configuration.seeds
    # A seed outside the run, whose model a user asks for by its path, has a part too.
    number = seeds.index(int(seed)) if int(seed) in seeds else int(seed)
    return {"share": share, "number": number}


def finetune(
    configuration: Configuration, dataset: str, method: str, seed: str
) -> Settings:
    """Return the CLIP model, the method, and how the training is computed."""
    values = configuration.method(method, dataset)
    objective = OBJECTIVES[values["objective"]]
    read = {name: values[name] for name in TrainingSection.model_fields if name in values}
    return {
        "clip": configuration.section("clip", dataset),
        "class_texts": _class_texts(configuration, dataset),
        "method": {**read, "objective": objective.module},
        "is_supervised": objective.is_supervised,
        "compute": configuration.section("compute", dataset),
        "fold": fold(configuration, dataset, seed),
    }


def find_learning_rate(configuration: Configuration, dataset: str, method: str) -> Settings:
    """Return the settings of the training without its fold."""
    values = finetune(configuration, dataset, method, "0")
    del values["fold"]
    return values


def averaged(configuration: Configuration, dataset: str, method: str) -> list[Settings]:
    """Return the trainings that average_weights averages: their files, and what they left out."""
    of = configuration.averaged(method)
    trainings = []
    for seed in configuration.seeds:
        run = _run(dataset, of, seed, "model", "history")
        training = {
            "model": run["model"],
            "history": run["history"],
            "fold": fold(configuration, dataset, str(seed)),
        }
        trainings.append(training)
    return trainings


# Evaluation and the choice of a model.


def evaluate(
    configuration: Configuration, dataset: str, method: str, seed: str
) -> Settings:
    """Return how images are encoded, how many classes are kept, and which images were left out."""
    values = {
        "clip": _part(configuration, "clip", dataset, "precision"),
        "inference": configuration.section("inference", dataset),
    }
    if configuration.is_average(method):  # each of its trainings left out others
        return values
    return {**values, "fold": fold(configuration, dataset, seed)}


def evaluate_classifier(
    configuration: Configuration, dataset: str, method: str
) -> Settings:
    """Return how many classes are kept for each image, and the flags of the method."""
    is_in_paper = configuration.objective(method).in_paper
    inference = _part(configuration, "inference", dataset, "topk")
    return {"inference": inference, "flags": [] if is_in_paper else ["ours"]}


def candidates(configuration: Configuration, dataset: str) -> list[Settings]:
    """Return the runs among which select_model chooses."""
    runs = []
    for method, seed in configuration.candidates(dataset):
        objective = str(configuration.method(method, dataset)["objective"])
        run = _run(dataset, method, seed, "metrics", "train_predictions", "model")
        runs.append(candidacy(objective) | run)
    return runs


def candidacy(objective: str) -> Settings:
    """Return what select_model asks of the objective of a candidate."""
    record = OBJECTIVES[objective]
    return {
        "complexity": methods.complexity(objective),
        "is_default": record.is_default,
        "is_average": record.averages,
    }


def audited_runs(configuration: Configuration, dataset: str) -> list[Settings]:
    """Return the runs that score_audit scores."""
    runs = []
    for method, seed in configuration.runs(dataset):
        run = _run(dataset, method, seed, "metrics", "predictions", "train_predictions")
        if configuration.is_average(method):
            run["train_predictions"] = LEFT_OUT.format(
                dataset=dataset, method=method, seed=seed
            )
        runs.append(run)
    return runs


def page_runs(configuration: Configuration, dataset: str) -> list[Settings]:
    """Return the files that a page reads of each run: any of them may be the chosen one."""
    return [
        _run(dataset, method, seed, "metrics", "train_predictions")
        for method, seed in configuration.runs(dataset)
    ]


def selection_if_any(configuration: Configuration, dataset: str) -> Paths:
    """Return the output of select_model for a dataset for which it chooses."""
    path = f"results/{dataset}/selection{configuration.suffix}.json"
    return [path] if configuration.candidates(dataset) else []


def answers(_: Configuration, dataset: str) -> Paths:
    """Return the plan and the answers of an audit, if `latteclip audit` wrote some.

    Those about the test split come before those about the training images.
    """
    for split in ("test", "train"):
        folder = f"results/{dataset}/audit/{split}"
        paths = [f"{folder}/plan.parquet", f"{folder}/answers.json"]
        if all(Path(path).is_file() for path in paths):
            return paths
    return []


def audit_if_any(configuration: Configuration, dataset: str) -> Paths:
    """Return the scores of a dataset's models by an audit if there was one."""
    path = f"results/{dataset}/audit{configuration.suffix}.json"
    return [path] if answers(configuration, dataset) else []


def discovery_if_any(configuration: Configuration, dataset: str) -> Paths:
    """Return the proposal of the classes, if a stage proposes them."""
    discovers = proposes_classes(configuration, dataset)
    return [f"results/{dataset}/{PROPOSAL}"] if discovers else []


def taught_labels(configuration: Configuration, dataset: str) -> Paths:
    """Return the report on the labels of a dataset about which a person answered."""
    is_taught = bool(teaching_answers(configuration, dataset))
    shown = is_taught and shows_fused_labels(configuration, dataset)
    return [f"results/{dataset}/fused_labels.json"] if shown else []


def voter_labels(configuration: Configuration, dataset: str) -> Paths:
    """Return the labels by each voter, if a method of the run learns from votes."""
    shown = shows_fused_labels(configuration, dataset)
    return [f"results/{dataset}/voter_labels.parquet"] if shown else []


def labeller_files(configuration: Configuration, dataset: str) -> Paths:
    """Return the files beside the labels by each labeller that say how accurate these are."""
    if not voter_labels(configuration, dataset):
        return []
    folder = f"results/{dataset}"
    names = ("images.parquet", "pseudo_labels.parquet", "fused_labels.parquet")
    voters = configuration.voters(dataset)
    tables = [f"{folder}/{voter.table}" for voter in voters]
    return [
        *(f"{folder}/{name}" for name in names),
        f"{folder}/fused_labels.json",
        *tables,
    ]


# Pages.


def report_dataset(configuration: Configuration, dataset: str) -> str:
    """Return the settings of the page of a dataset, as JSON in the order in which it is read.

    Without a chosen model, the page's main method is the last one that can be chosen.
    """
    values = {
        "dataset": dataset,
        "table": {"baseline": configuration.table["baseline"]},
        "main": main_method(configuration, dataset),
        "suffix": configuration.suffix,
        "overview": overview(configuration),
        "config": _resolved(configuration, dataset),
    }
    return json.dumps(values, ensure_ascii=False)


def main_method(configuration: Configuration, dataset: str) -> str:
    """Return the method that a page is about where no model was chosen."""
    run = configuration.methods_of(dataset)
    able = [m for m in run if configuration.objective(m).can_be_chosen]
    return (able or run)[-1]


def _resolved(configuration: Configuration, dataset: str) -> Settings:
    """Return the configuration of a dataset, resolved, in the order in which it is read."""
    file = configuration.dataset(dataset)
    sections = [
        name for name in Shared.model_fields if name not in ("template", "finetune")
    ]
    by_name = {}
    for method in configuration.methods_of(dataset):
        like = configuration.config["methods"][method].get("like")
        values = configuration.method(method, dataset)
        by_name[method] = {"like": like, **values} if like else values
    return {
        "dataset": dataset,
        **({} if configuration.limit is None else {"limit": configuration.limit}),
        "seeds": configuration.seeds,
        **{key: file[key] for key in DESCRIBED if key in file},
        "template": configuration.section("template", dataset),
        **{name: configuration.section(name, dataset) for name in sections},
        "methods": by_name,
    }


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
    titles = {
        key: values.get("title") for key, values in configuration.config["datasets"].items()
    }
    return {
        "table": {"baseline": configuration.table["baseline"]},
        "reports": {
            k: f"{k}/report{configuration.suffix}.html" for k in configuration.datasets
        },
        "titles": {key: title for key, title in titles.items() if title},
    }


def _part(configuration: Configuration, section: str, dataset: str, key: str) -> Settings:
    """Return a section with one key: the others rerun nothing, and the stage reads none of them."""
    return {key: configuration.section(section, dataset)[key]}


def _class_texts(configuration: Configuration, dataset: str) -> Settings:
    synonyms = configuration.dataset(dataset).get("class_synonyms")
    words = {"template": configuration.section("template", dataset)}
    return {**words, "class_synonyms": synonyms} if synonyms else words


def _run(dataset: str, method: str, seed: int, *kinds: str) -> Settings:
    folder = f"results/{dataset}/{method}/seed{seed}"
    files = {kind: f"{folder}/{FILES.get(kind, f'{kind}.parquet')}" for kind in kinds}
    return {"method": method, "seed": seed, **files}
