"""Inputs and settings of jobs that follow from the configuration.

Functions take the objects of `resolve` that the rule names. What a function returns decides which
jobs a changed key reruns: it returns what its stage reads, and nothing else.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

from latteclip.config import hub_names, registry
from latteclip.config.hub_names import Names
from latteclip.config.registry import OBJECTIVES
from latteclip.config.resolve import Asker, Dataset, Labeller, Method, Run, sections
from latteclip.core.class_templates import PLACE
from latteclip.core.file_names import (
    ACTIONS,
    IMAGES,
    PROPOSAL,
    TABLES,
    edited_classes,
    folders_in,
)
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


def _if_there(*paths: str) -> Paths:
    """Return files that a person's command may have written, if all are there."""
    return list(paths) if all(Path(path).is_file() for path in paths) else []


# Sources and models.


def index_images(dataset: Dataset) -> Settings:
    """Return how the folder of images is read."""
    return {**dataset.keys.split.model_dump(), "class_names": dataset.keys.class_names}


def made_folder(dataset: Dataset) -> Paths:
    """Return the folder of images, shared by all runs, if a rule makes it."""
    source = dataset.keys.source
    is_made = source is not None and source.folder is None
    return [f"resources/{dataset.whole}/data"] if is_made else []


def download_dataset(dataset: Dataset) -> Settings:
    """Return the files to download, and their terms of use."""
    keys = dataset.keys
    downloads = keys.source.model_dump(exclude_unset=True) if keys.source else {}
    return {**downloads, **sections(keys, "title", "licence", "citation", "split.kind")}


def note(model: Names | None) -> Paths:
    """Return the note on a model if it comes from the hub."""
    return [MODEL_NOTE.format(model=hub_names.slug(model))] if model else []


def clip_note(dataset: Dataset) -> Paths:
    """Return the note on the CLIP model."""
    return note(hub_names.hub_clip(dataset.keys.clip))


def captioner_note(asker: Asker) -> Paths:
    """Return the note on the captioner's model."""
    return note(asker.hub_model)


def encoder_notes(encoders: dict[str, str]) -> Paths:
    """Return the notes on image encoders of the hub, by the names of their files."""
    hub = [name for name in encoders.values() if hub_names.local_folder(name) is None]
    return [path for name in hub for path in note({"model": name})]


# Local models, by their content: times of files that were moved or copied say nothing. No command
# reads these parameters, but another model in the same folder reruns its jobs.


@cache  # all jobs of a run have the same models
def _fingerprint(path: str | None) -> str:
    return fingerprint(path) if path and os.path.exists(path) else ""


def local_clip(dataset: Dataset) -> str:
    """Return a digest of the CLIP model if it is a folder or a file."""
    return _fingerprint(hub_names.local_clip(dataset.keys.clip))


def local_captioner(asker: Asker) -> str:
    """Return a digest of the captioner's model if it is a folder."""
    model = asker.captioner.model
    return _fingerprint(model) if asker.engine.loads_model and os.path.isdir(model) else ""


def local_encoders(encoders: dict[str, str]) -> str:
    """Return the digests of image encoders that are folders."""
    return " ".join(
        _fingerprint(hub_names.local_folder(name)) for name in encoders.values()
    )


# Captions and class scores.


def answer_store(dataset: Dataset, kind: str) -> str:
    """Return the folder of the cached answers about "images", "names" and so on."""
    return dataset.run.place(f"resources/{dataset.whole}/captions/{kind}")


def captioner(asker: Asker) -> Settings:
    """Return the captioner, with what its stages ask of the engine."""
    engine = asker.engine
    of_engine = {"loads_model": engine.loads_model, "reads_file": engine.reads_file}
    return {**asker.captioner.model_dump(), **of_engine}


def scores_prompt(asker: Asker) -> str:
    """Return the question whose answers are scored; letters have a question of their own."""
    return asker.prompts.image if asker.scores.kind == "likelihood" else ""


def file_if_read(asker: Asker, file: str | None) -> Paths:
    """Return the user's file if it replaces the captioner."""
    return [file] if asker.engine.reads_file and file is not None else []


def caption_labels(asker: Asker) -> Paths:
    """Return the pseudo-labels if captions of images need them: for the prompt or the order."""
    is_read = PLACE in asker.prompts.image or asker.max_images(IMAGES) is not None
    return [f"{asker.dataset.results}/pseudo_labels.parquet"] if is_read else []


def chosen_by(asker: Asker, kind: str) -> Paths:
    """Return the classifier that chooses images if a captioner is not asked about all."""
    if asker.max_images(kind) is None:
        return []
    return [f"{asker.dataset.results}/{registry.ADAPTED}"]


def person_answers(asker: Asker, kind: str) -> str:
    """Return the option with a person's answers if a captioner is not asked about all images.

    They are no input: an answer after the questions reruns nothing, and asks nothing.
    """
    if asker.max_images(kind) is None:
        return ""
    return f"--answers {asker.dataset.folder}/answers.json"


def shards(dataset: Dataset, table: str) -> Paths:
    """Return the shards of "captions/images", "captions/groups" or "class_scores"."""
    n = dataset.shards
    path = f"{dataset.results}/captions/shards/{os.path.basename(table)}"
    return [f"{path}-{i}-of-{n}.parquet" for i in range(1, n + 1)]


def captions(dataset: Dataset, *kinds: str) -> Paths:
    """Return the tables of captions of "image" or "group", or both, that some method needs."""
    wanted = [kind for kind in dataset.caption_kinds if kind in (kinds or (kind,))]
    return [f"{dataset.results}/{TABLES[f'{kind}s']}" for kind in wanted]


# Discovery.


def name_images(dataset: Dataset) -> Settings:
    """Return the captioner as it is asked for a name, with what its stage asks of the engine."""
    return {**captioner(dataset.asker), "max_new_tokens": registry.NAME_TOKENS}


def proposes_classes(dataset: Dataset) -> bool:
    """Return whether a stage writes classes.txt. After an edit by hand, no stage does."""
    return dataset.discovers and edited_classes(dataset.folder) is None


def class_actions(dataset: Dataset) -> Paths:
    """Return what a person did to the proposed classes."""
    return _if_there(f"{dataset.folder}/{ACTIONS}")


def discovery(dataset: Dataset) -> Paths:
    """Return the proposal of the classes, if a stage proposes them."""
    return [f"{dataset.results}/{PROPOSAL}"] if proposes_classes(dataset) else []


# Labels.


def examples(dataset: Dataset) -> Paths:
    """Return the features of images of known classes that are not in the dataset."""
    return [f"{dataset.results}/examples.parquet"] if dataset.keys.split.examples else []


def example_classes(dataset: Dataset) -> Paths:
    """Return the class folders of `split.examples`, so that a new folder reruns the index."""
    folder = dataset.keys.split.examples
    return folders_in(folder) if folder and os.path.isdir(folder) else []


def example_images(dataset: Dataset) -> str:
    """Return a digest of `split.examples`, so that a new image reruns its job."""
    return _fingerprint(dataset.keys.split.examples)


def encode_examples(dataset: Dataset) -> Settings:
    """Return the folder of these images, the models that encode them, and the batch size."""
    split = dataset.keys.split
    return {
        "examples_folder": split.examples,
        "replacements": split.classname_replace,
        "encoders": list(dataset.run.image_encoders.values()),
        **sections(dataset.keys, "clip"),
    }


def example_models(dataset: Dataset) -> Paths:
    """Return the notes on the models of the hub that encode these images."""
    return [*clip_note(dataset), *encoder_notes(dataset.run.image_encoders)]


def encode_images(dataset: Dataset, encoder: str) -> Settings:
    """Return an image encoder beside CLIP, and how images are encoded."""
    name = dataset.run.image_encoders[encoder]
    return {"encoder": name, **sections(dataset.keys, "clip.precision")}


def encoder_note(dataset: Dataset, encoder: str) -> Paths:
    """Return the note on an image encoder if it comes from the hub."""
    return encoder_notes({encoder: dataset.run.image_encoders[encoder]})


def encoder_files(dataset: Dataset, encoder: str) -> str:
    """Return a digest of an image encoder if it is a folder."""
    return local_encoders({encoder: dataset.run.image_encoders[encoder]})


def pseudo_label_images(dataset: Dataset) -> Settings:
    """Return the CLIP model, the class templates, and how images are encoded."""
    own = sections(dataset.keys, "clip")
    return {**own, "class_texts": class_texts(dataset)}


def class_texts(dataset: Dataset) -> Settings:
    """Return what the texts of the classes are made of."""
    return sections(dataset.keys, "template", "class_synonyms")


def labellers(dataset: Dataset) -> list[Settings]:
    """Return the labellers of a dataset with the tables of their votes."""
    return [
        {
            "name": each.name,
            "kind": each.kind,
            "column": each.column,
            "table": f"{dataset.results}/{each.votes}",
            "answers": f"{dataset.results}/{each.table}" if each.asks else None,
        }
        for each in dataset.labellers
    ]


def labellers_with(run: Run, is_wanted: Any) -> list[str]:
    """Return the names of some labellers of a run."""
    return sorted({e.name for d in run.datasets for e in d.labellers if is_wanted(e)})


def write_votes(labeller: Labeller) -> Settings:
    """Return what a labeller's votes follow from: captions, a file, or a CLIP model."""
    dataset = labeller.dataset
    values: Settings = {"name": labeller.name, "kind": labeller.kind}
    if labeller.asks is not None:
        return {**values, "captions": dataset.keys.clip.model_dump()}
    if labeller.clip is not None:
        own = {**pseudo_label_images(dataset), "clip": labeller.clip.model_dump()}
        return {**values, "zero_shot": own}
    share = {} if labeller.share is None else {"share": labeller.share}
    return {**values, "file": labeller.file, **share}


def votes_inputs(labeller: Labeller) -> Paths:
    """Return the captions that a labeller's votes follow from, and the class embeddings."""
    if labeller.asks is None:
        return []
    folder = labeller.dataset.results
    return [f"{folder}/{labeller.table}", f"{folder}/{registry.CLASS_EMBEDDINGS}"]


def votes_file(labeller: Labeller) -> Paths:
    """Return the user's file with the votes of a labeller."""
    return [labeller.file] if labeller.file is not None else []


def votes_note(labeller: Labeller) -> Paths:
    """Return the note on the CLIP model that a labeller's votes need."""
    if labeller.asks is not None:
        return clip_note(labeller.dataset)
    return note(hub_names.hub_clip(labeller.clip)) if labeller.clip else []


def votes_clip(labeller: Labeller) -> str:
    """Return a digest of that CLIP model if it is a folder or a file."""
    if labeller.asks is not None:
        return local_clip(labeller.dataset)
    return _fingerprint(hub_names.local_clip(labeller.clip)) if labeller.clip else ""


def image_features(dataset: Dataset, encoders: dict[str, str]) -> Paths:
    """Return the features by image encoders beside CLIP."""
    return [f"{dataset.results}/image_encoders/{encoder}.parquet" for encoder in encoders]


def teaching_answers(dataset: Dataset) -> Paths:
    """Return a person's answers from which the labels learn."""
    return _if_there(f"{dataset.folder}/answers.json")


def fused_file(dataset: Dataset, name: str) -> Paths:
    """Return a file of fuse_labels if a method of the run reads its labels."""
    return [f"{dataset.results}/{name}"] if dataset.reads_fused_labels else []


def taught_labels(dataset: Dataset) -> Paths:
    """Return the report on labels about which a person answered."""
    return fused_file(dataset, "fused_labels.json") if teaching_answers(dataset) else []


def labeller_files(dataset: Dataset) -> Paths:
    """Return the files beside the labels by each labeller that say how accurate these are."""
    names = ["images.parquet", "pseudo_labels.parquet", "fused_labels.parquet"]
    names += ["fused_labels.json", *(each.table for each in dataset.labellers)]
    return [path for name in names for path in fused_file(dataset, name)]


# Classifiers and trainings.


def evaluate_classifier(method: Method) -> Settings:
    """Return the models by which the method predicts, and how its runs are marked."""
    encoders = list(method.encoders.values())
    clip = sections(method.dataset.keys, "clip")
    return {**clip, "encoders": encoders, "flags": flags(method)}


def classifier(method: Method) -> str:
    """Return the classifier of a method without training.

    Where it takes pseudo-labels and these are not fused, it is the adapted one.
    """
    is_adapted = method.objective.pseudo_labels and not method.reads_fused_labels
    file = registry.ADAPTED if is_adapted else method.objective.classifier
    return f"{method.dataset.results}/{file}"


def training_captions(method: Method, kind: str) -> Paths:
    """Return the table of captions of a kind if the method trains on them."""
    is_read = method.reads_captions(kind)
    return [f"{method.dataset.results}/{TABLES[f'{kind}s']}"] if is_read else []


def decoded_images(dataset: Dataset) -> str:
    """Return the folder of resized images that all trainings share, until a run ends."""
    return dataset.run.place(f"resources/{dataset.whole}/decoded")


def fold(dataset: Dataset, seed: int) -> Settings:
    """Return which training images a seed leaves out: another part for each seed of the run."""
    share = dataset.keys.selection.share
    if not share:
        return {"share": 0.0, "number": 0}
    seeds = dataset.run.seeds
    # A seed outside the run, whose model a user asks for by its path, has a part too.
    return {"share": share, "number": seeds.index(seed) if seed in seeds else seed}


def training(method: Method) -> Settings:
    """Return the CLIP model, the method, and how the training is computed."""
    return {
        "method": method.keys.model_dump(exclude={"of", "like"}),
        "module": method.objective.module,
        "is_supervised": method.objective.is_supervised,
        "class_texts": class_texts(method.dataset),
        **sections(
            method.dataset.keys,
            "clip",
            "compute.micro_batch",
            "compute.checkpoint_minutes",
        ),
    }


def finetune(method: Method, seed: str) -> Settings:
    """Return the settings of a training, and which images it leaves out."""
    return {**training(method), "fold": fold(method.dataset, int(seed))}


def averaged(method: Method) -> list[Settings]:
    """Return the trainings that average_weights averages: their files, and what they left out."""
    trainings = []
    for seed in method.dataset.run.seeds:
        files = _run(_averaged(method), seed, "model", "history")
        kept = {kind: files[kind] for kind in ("model", "history")}
        trainings.append({**kept, "fold": fold(method.dataset, seed)})
    return trainings


def _averaged(method: Method) -> Method:
    assert method.averaged is not None
    return method.averaged


# Evaluation and the choice of a model.


def evaluate(method: Method, seed: str) -> Settings:
    """Return how images are encoded, and which images were left out."""
    values = sections(method.dataset.keys, "clip.precision")
    if method.averaged:  # each of its trainings left out others
        return values
    return {**values, "fold": fold(method.dataset, int(seed))}


def flags(method: Method) -> list[str]:
    """Return the flags of a method's runs that its configuration gives."""
    basis = method.averaged or method
    is_ours = not (method.objective.in_paper and basis.objective.in_paper)
    return ["ours"] if is_ours else []


def candidates(dataset: Dataset) -> list[Settings]:
    """Return the runs among which select_model chooses."""
    return [
        {
            **_run(method, seed, "metrics", "train_predictions", "model"),
            **candidacy(method.keys.objective),
        }
        for method, seed in dataset.candidates
    ]


def candidacy(objective: str) -> Settings:
    """Return what select_model asks of the objective of a candidate."""
    record = OBJECTIVES[objective]
    return {
        "complexity": registry.complexity(objective),
        "is_default": record.is_default,
        "is_average": record.averages,
    }


def audited_runs(dataset: Dataset) -> list[Settings]:
    """Return the runs that score_audit scores."""
    kinds = ("metrics", "predictions", "train_predictions")
    return [_run(method, seed, *kinds) for method, seed in dataset.runs]


def page_runs(dataset: Dataset) -> list[Settings]:
    """Return the files that a page reads of each run: any of them may be the chosen one."""
    kinds = ("metrics", "train_predictions")
    return [_run(method, seed, *kinds) for method, seed in dataset.runs]


def _run(method: Method, seed: int, *kinds: str) -> Settings:
    folder = method.folder(seed)
    files = {kind: f"{folder}/{FILES.get(kind, f'{kind}.parquet')}" for kind in kinds}
    return {"method": method.name, "seed": seed, **files}


def selection(dataset: Dataset) -> Paths:
    """Return the output of select_model for a dataset for which it chooses."""
    path = f"{dataset.results}/selection{dataset.run.suffix}.json"
    return [path] if dataset.candidates else []


def audit_answers(dataset: Dataset) -> Paths:
    """Return the plan and the answers of an audit, if `latteclip audit` wrote some.

    Those about the test split come before those about the training images.
    """
    folder = f"{dataset.folder}/audit"
    test = _if_there(f"{folder}/test/plan.parquet", f"{folder}/test/answers.json")
    return test or _if_there(f"{folder}/train/plan.parquet", f"{folder}/train/answers.json")


def audit(dataset: Dataset) -> Paths:
    """Return the scores of a dataset's models by an audit if there was one."""
    path = f"{dataset.results}/audit{dataset.run.suffix}.json"
    return [path] if audit_answers(dataset) else []


def all_runs(run: Run) -> Paths:
    """Return the metrics of every run."""
    runs = [each for dataset in run.datasets for each in dataset.runs]
    return [f"{method.folder(seed)}/metrics.json" for method, seed in runs]


# Pages.


def report_dataset(dataset: Dataset) -> Settings:
    """Return the settings of the page of a dataset.

    Without a chosen model, the page's main method is the last one that can be chosen.
    """
    run = dataset.run
    return {
        "dataset": dataset.name,
        "table": {"baseline": run.keys.table.baseline},
        "main": dataset.main_method.name,
        "suffix": run.suffix,
        "overview": overview(run),
        "config": _resolved(dataset),
    }


def _resolved(dataset: Dataset) -> Settings:
    """Return the configuration of a dataset, resolved, in the order in which it is read."""
    keys = dataset.keys
    given = keys.model_dump(exclude_unset=True)
    shown = keys.model_dump(exclude={*DESCRIBED, "size", "methods", "finetune"})
    methods = {m.name: m.keys.model_dump(exclude_none=True) for m in dataset.methods}
    limit = dataset.run.keys.limit
    return {
        "dataset": dataset.name,
        **({} if limit is None else {"limit": limit}),
        "seeds": dataset.run.seeds,
        **{key: given[key] for key in DESCRIBED if key in given},
        **shown,
        "methods": methods,
    }


def others(run: Run) -> str:
    """Return the option that adds the datasets of earlier runs to the main table and its page.

    They are no inputs: a table does not remake the results of earlier runs.
    """
    is_main = not run.suffix and run.keys.limit is None
    return f"--others {run.place('results/')}" if is_main else ""


def overview(run: Run) -> str:
    """Return the file below results that is the page over all datasets."""
    return f"index{run.suffix}{run.limit_suffix}.html"


def index_results(run: Run) -> Settings:
    """Return the pages and titles of the datasets for the page over all of them."""
    titles = {name: keys.title for name, keys in run.keys.datasets.items()}
    return {
        "table": {"baseline": run.keys.table.baseline},
        "reports": {d.name: f"{d.name}/report{run.suffix}.html" for d in run.datasets},
        "titles": {name: title for name, title in titles.items() if title},
    }
