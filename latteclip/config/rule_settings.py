"""The settings of each stage: what its rule hands to its command as JSON, and nothing more.

A function has the name of its rule, or says what several rules are given. What it returns decides
which stages a changed key of the configuration reruns.
"""

from typing import Any

from latteclip.config.configuration import Configuration

Settings = dict[str, Any]


def generate_textures(configuration: Configuration, dataset: str) -> Settings:
    """Numbers of images, the domain gap and the seed."""
    return dict(configuration.dataset(dataset)["source"]["textures"])


def download_dataset(configuration: Configuration, dataset: str) -> Settings:
    """The files, and on whose terms they are used."""
    values = configuration.dataset(dataset)
    terms = ("title", "licence", "citation")
    files = {"downloads": values["source"]["downloads"]}
    return files | {key: values[key] for key in terms if key in values}


def hub_model(configuration: Configuration, model: str, section: str) -> Settings:
    """The names of a model of the hub of section "clip" or "captioner", by that of its note."""
    return dict(configuration.hub_models(section)[model])


def index_images(configuration: Configuration, dataset: str) -> Settings:
    """Return how the dataset's folder is read, and how many images are drawn in a limited run."""
    values = configuration.section("split", dataset)
    return values if configuration.limit is None else {**values, "limit": configuration.limit}


def pseudo_label_images(configuration: Configuration, dataset: str) -> Settings:
    """The CLIP model, the words for classes, and how images are encoded."""
    return {
        **configuration.section("clip", dataset),
        **configuration.section("inference", dataset),
        **_words(configuration, dataset),
    }


def _words(configuration: Configuration, dataset: str) -> Settings:
    """How the classes are put into words; without synonyms there is no key for them."""
    synonyms = configuration.dataset(dataset).get("class_synonyms")
    words = {"template": configuration.template(dataset)}
    return {**words, "class_synonyms": synonyms} if synonyms else words


def captioner(configuration: Configuration, dataset: str) -> Settings:
    """The engine and its model."""
    return configuration.section("captioner", dataset)


def scores(configuration: Configuration, dataset: str) -> Settings:
    """How classes are scored, and what a likelihood is the answer to."""
    values = configuration.section("scores", dataset)
    asks = values["kind"] == "likelihood"
    return {**values, "prompt": prompt(configuration, dataset, "image") if asks else ""}


def groups(configuration: Configuration, dataset: str) -> Settings:
    """Which images form a group, and how they are shown."""
    return configuration.section("groups", dataset)


def prompt(configuration: Configuration, dataset: str, kind: str) -> str:
    """The question about an "image" or a "group"."""
    return str(configuration.section("prompts", dataset)[kind])


def label_by_captions(configuration: Configuration, dataset: str) -> Settings:
    """The CLIP model that encodes the captions, and how many at once."""
    return {
        **configuration.section("clip", dataset),
        "batch_size": configuration.section("inference", dataset)["batch_size"],
    }


def fold(configuration: Configuration, dataset: str, seed: str) -> Settings:
    """Return which training images a seed leaves out; of seeds that leave out none all alike."""
    share = float(configuration.section("selection", dataset)["share"])
    if not share:
        return {"share": 0.0, "number": 0, "count": 1}
    seeds = configuration.seeds
    # A seed that is not of the run, whose model a person asks for by its path, has some fold too.
    number = seeds.index(int(seed)) if int(seed) in seeds else int(seed) % len(seeds)
    return {"share": share, "number": number, "count": len(seeds)}


def score_unknown(configuration: Configuration, dataset: str) -> Settings:
    """How many of the training images are called unknown."""
    return configuration.section("unknown", dataset)


def finetune(configuration: Configuration, dataset: str, method: str, seed: str) -> Settings:
    """The CLIP model, the method, and how it is computed."""
    values = configuration.method(method, dataset)
    return {
        **configuration.section("clip", dataset),
        **_words(configuration, dataset),
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
    """Return what decides a learning rate: the settings of the training but its fold and head."""
    values = finetune(configuration, dataset, method, "0")
    return {key: value for key, value in values.items() if key not in ("fold", "head")}


def finetune_command(configuration: Configuration, dataset: str) -> str:
    """What runs the command: one process, or several under torchrun, with GPUs of their own."""
    processes = configuration.section("processes", dataset)["finetune"]
    if processes == 1:
        return "latteclip"
    claim = f"python -m latteclip.core.gpus {processes}"
    return f"{claim} torchrun --standalone --nproc-per-node {processes} -m -- latteclip"


def evaluate(configuration: Configuration, dataset: str, method: str, seed: str) -> Settings:
    """Return how images are encoded, how many classes each has, and which were left out.

    An average left none out: each of its trainings left out others.
    """
    has_fold = not configuration.is_average(method)
    return {
        **configuration.section("inference", dataset),
        "precision": configuration.section("clip", dataset)["precision"],
        **({"fold": fold(configuration, dataset, seed)} if has_fold else {}),
    }


def evaluate_classifier(configuration: Configuration, dataset: str) -> int:
    """How many classes are kept for each image."""
    return int(configuration.section("inference", dataset)["topk"])


def assemble_model(configuration: Configuration, dataset: str) -> Settings:
    """The CLIP model that gets a classifier."""
    return configuration.section("clip", dataset)


def propagate_labels(configuration: Configuration, dataset: str, method: str) -> Settings:
    """The graph of the images, and how many classes are kept for each."""
    graph = configuration.method(method, dataset).get("graph", {})
    return {**graph, "topk": configuration.section("inference", dataset)["topk"]}
