# What the pages are made of: files, settings, and which method is shown in detail.
import json

# Pages of a table of its own stand beside the main ones.
PAGES = "" if settings.table["name"] == "summary" else f"-{settings.table['name']}"


def templates():
    """The templates, style and script of the pages: an edit of them is one of the code."""
    return sorted(map(str, Path("latteclip/report/templates").iterdir()))


def shown_method(dataset):
    """The method that a page shows in detail.

    The first LatteCLIP that is like no other method; without one, the last that is not zero-shot.
    """
    asked = [m for m in settings.methods if settings.objective(m) != "zero_shot"]
    whole = [
        m
        for m in asked
        if settings.objective(m) == "latteclip"
        and "like" not in settings.config["methods"][m]
    ]
    return (whole or asked[-1:] or [None])[0]


def report_runs(dataset):
    """What a page reads of each run: the metrics and history of all, and more of one method."""
    shown = shown_method(dataset)
    first = min(
        (seed for method, seed in settings.runs(dataset) if method == shown),
        default=None,
    )
    runs = []
    for method, seed in settings.runs(dataset):
        folder = f"results/{dataset}/{method}/seed{seed}"
        run = {"method": method, "seed": seed, "metrics": f"{folder}/metrics.json"}
        if settings.is_trained(method):
            run["history"] = f"{folder}/history.parquet"
        if method == shown:
            run["predictions"] = f"{folder}/predictions.parquet"
            if seed == first and settings.is_trained(method):
                run["gallery"] = f"{folder}/gallery.parquet"
        runs.append(run)
    return runs


def of_runs(kind):
    """The files of one kind that a page reads of the runs."""
    return lambda wildcards: [
        run[kind] for run in report_runs(wildcards.dataset) if kind in run
    ]


def captions_if_read(kind):
    """The captions of a kind, where any method of the run needs them."""

    def path(wildcards):
        if kind in settings.caption_kinds(wildcards.dataset):
            return [f"results/{wildcards.dataset}/captions/{kind}s.parquet"]
        return []

    return path


def caption_summary_if_read(wildcards):
    """The captions in numbers, where any method of the run needs captions."""
    if settings.caption_kinds(wildcards.dataset):
        return [f"results/{wildcards.dataset}/captions/summary.json"]
    return []


def report_benchmarks(dataset):
    """Snakemake's benchmark files: no inputs, for one that is missing must rerun nothing."""
    folder = f"results/{dataset}"
    n = settings.section("captions", dataset)["shards"]
    shards = [f"-{i}-of-{n}" for i in range(1, n + 1)] if n > 1 else [""]
    files = [
        {"rule": stage, "run": "", "path": f"{folder}/benchmarks/{stage}{shard}.jsonl"}
        for stage, parts in (
            *(("index_images", [""]), ("pseudo_label_images", [""])),
            *(("caption_images", shards), ("caption_groups", shards)),
            ("label_by_captions", [""]),
        )
        for shard in parts
    ]
    for method, seed in settings.runs(dataset):
        for stage in ("finetune", "propagate_labels", "evaluate", "evaluate_zero_shot"):
            path = f"{folder}/{method}/seed{seed}/benchmarks/{stage}.jsonl"
            files.append({"rule": stage, "run": f"{method}, seed {seed}", "path": path})
    return files


def report_config(dataset):
    """The configuration as it stands for a dataset, for people to read."""
    sections = (
        *("clip", "inference", "captioner", "captions", "groups"),
        *("compute", "processes", "threads"),
    )
    shared = {name: settings.section(name, dataset) for name in sections}
    methods = {}
    for method in settings.methods:
        like = settings.config["methods"][method].get("like")
        methods[method] = ({"like": like} if like else {}) | settings.method(
            method, dataset
        )
    own = settings.dataset(dataset)
    described = (
        "title",
        "licence",
        "citation",
        "source",
        "split",
        "template",
        "prompts",
    )
    return {
        "dataset": dataset,
        "seeds": settings.seeds,
        **{key: own[key] for key in described if key in own},
        **shared,
        "methods": methods,
    }


def report_settings(wildcards):
    dataset = wildcards.dataset
    return json.dumps(  # in the order in which people read it
        {
            "dataset": dataset,
            "baseline": settings.table["baseline"],
            "shown": shown_method(dataset),
            "config": report_config(dataset),
            "benchmarks": report_benchmarks(dataset),
        },
        ensure_ascii=False,
    )


def index_settings():
    titles = {d: settings.dataset(d).get("title", "") for d in settings.datasets}
    return as_json(
        {
            "baseline": settings.table["baseline"],
            "reports": {d: f"{d}/report{PAGES}.html" for d in settings.datasets},
            "titles": {d: title for d, title in titles.items() if title},
        }
    )
