"""What the pages are made of: files, settings, and which methods have a part of their own."""

import json
from typing import Any

from latteclip.config.configuration import HEADS, NO_CANDIDATES, Configuration

# Sections that datasets share and a page tells, in its order.
SECTIONS = (
    *(
        "split",
        "prompts",
        "clip",
        "inference",
        "captioner",
        "captions",
        "scores",
        "selection",
        "unknown",
    ),
    *("groups", "compute", "processes"),
)
DESCRIBED = ("title", "licence", "citation", "source", "class_synonyms")
# Stages whose benchmarks a page reads: those of a dataset, and those of a run.
CAPTIONING = ("caption_images", "caption_groups", "score_classes")
OF_DATASET = (
    *("index_images", "find_duplicates", "pseudo_label_images", "calibrate_zero_shot", *CAPTIONING),
    *("label_by_captions", "score_unknown", "select_model"),
)
OF_RUN = (
    *("finetune", "average_weights", "propagate_labels", "evaluate", "evaluate_classifier"),
    *("evaluate_zero_shot", "assemble_model"),
)


def main_method(configuration: Configuration, dataset: str) -> str:
    """The method that a page is about where no model is chosen: the last that can be chosen."""
    methods = configuration.methods_of(dataset)
    able = [m for m in methods if configuration.objective(m) not in NO_CANDIDATES]
    return (able or methods)[-1]


def paper_method(configuration: Configuration, dataset: str) -> str | None:
    """The method of the paper, where it is run: the first LatteCLIP that is like no other."""
    return next(
        (
            method
            for method in configuration.methods_of(dataset)
            if configuration.objective(method) == "latteclip"
            and "like" not in configuration.config["methods"][method]
        ),
        None,
    )


def runs(configuration: Configuration, dataset: str) -> list[dict[str, Any]]:
    """What a page reads of each run.

    Any of them may be chosen, which is not known before. So all of them are inputs.
    """
    found = []
    for method, seed in configuration.runs(dataset):
        folder = f"results/{dataset}/{method}/seed{seed}"
        run = {"method": method, "seed": seed, "metrics": f"{folder}/metrics.json"}
        run["predictions"] = f"{folder}/predictions.parquet"
        if configuration.is_trained(method):
            run["history"] = f"{folder}/history.parquet"
        if configuration.is_trained(method) or configuration.objective(method) in HEADS:
            run["gallery"] = f"{folder}/gallery.parquet"
        found.append(run)
    return found


def files_of_runs(configuration: Configuration, dataset: str, kind: str) -> list[str]:
    """The files of one kind ("metrics", "history", ...) that a page reads of the runs."""
    return [run[kind] for run in runs(configuration, dataset) if kind in run]


def benchmarks(configuration: Configuration, dataset: str) -> list[dict[str, str]]:
    """Return the rule, the run and the path of each of Snakemake's benchmark files.

    They are no inputs, for one that is missing must rerun nothing.
    """
    folder = f"results/{dataset}"
    n = configuration.shards(dataset)
    shards = [f"-{i}-of-{n}" for i in range(1, n + 1)] if n > 1 else [""]
    files = [
        (stage, "", f"{folder}/benchmarks/{stage}{shard}.jsonl")
        for stage in OF_DATASET
        for shard in (shards if stage in CAPTIONING else [""])
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


def shown_config(configuration: Configuration, dataset: str) -> dict[str, Any]:
    """The configuration as it stands for a dataset, for people to read."""
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
    """The settings of the page of a dataset, as JSON in the order in which people read it."""
    values = {
        "dataset": dataset,
        "baseline": configuration.table["baseline"],
        "main": main_method(configuration, dataset),
        "paper": paper_method(configuration, dataset),
        "suffix": configuration.suffix,
        "overview": overview(configuration),
        "config": shown_config(configuration, dataset),
        "benchmarks": benchmarks(configuration, dataset),
    }
    return json.dumps(values, ensure_ascii=False)


def others(configuration: Configuration) -> str:
    """The option by which the main table and its page show datasets of earlier runs as well.

    They are no inputs: what an earlier run left is not made again for a table.
    """
    is_main = not configuration.suffix and configuration.limit is None
    return "--others results" if is_main else ""


def overview(configuration: Configuration) -> str:
    """Return the file below results that is the page over all datasets."""
    return f"index{configuration.suffix}{configuration.limit_suffix}.html"


def index_results(configuration: Configuration) -> dict[str, Any]:
    """The settings of the page over all datasets: their pages and their titles."""
    datasets = configuration.datasets
    titles = {key: one.get("title", "") for key, one in configuration.config["datasets"].items()}
    return {
        "baseline": configuration.table["baseline"],
        "reports": {key: f"{key}/report{configuration.suffix}.html" for key in datasets},
        "titles": {key: title for key, title in titles.items() if title},
    }
