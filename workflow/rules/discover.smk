# Classes of images that have no class names (class_names: discover): an index without classes, a
# name for each image by the captioner, and the classes that follow from names and features.

DISCOVERING = one_of(dataset.name for dataset in run.datasets if dataset.discovers)
# After an edit of classes.txt by hand, that file is an input of the user's.
PROPOSING = one_of(
    dataset.name for dataset in run.datasets if proposes_classes(dataset)
)


use rule index_images as index_unnamed_images with:
    input:
        made=user_files(dataset_setting(jobs.downloaded_folder)),
        classes=[],
        discovery=[],
    output:
        images="results/{dataset}/unnamed_images.parquet",
        corrupt="results/{dataset}/unnamed_corrupt.csv",
    log:
        "results/{dataset}/logs/index_unnamed_images.log",
    benchmark:
        "results/{dataset}/benchmarks/index_unnamed_images.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,


use rule caption_images as name_images with:
    input:
        images="results/{dataset}/unnamed_images.parquet",
        own=user_files(captioner_setting(NAMES, "files")),
        pseudo_labels=[],
        classifier=[],
        models=captioner_setting(NAMES, notes_on_models),
    output:
        "results/{dataset}/names.parquet",
    log:
        "results/{dataset}/logs/name_images.log",
    benchmark:
        "results/{dataset}/benchmarks/name_images.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,
    params:
        captioner=as_json(captioner_setting(NAMES, "settings")),
        prompt=captioner_setting(NAMES, "prompt"),
        answers="",
        store=shared_folder("captions/names"),


rule propose_classes:
    input:
        images="results/{dataset}/unnamed_images.parquet",
        names="results/{dataset}/names.parquet",
        features="results/{dataset}/unnamed_features.parquet",
    output:
        "results/{dataset}/proposed_classes.parquet",
    log:
        "results/{dataset}/logs/propose_classes.log",
    wildcard_constraints:
        dataset=DISCOVERING,
    priority: FIRST
    resources:
        mem_mb=memory(4_000, per_million=16_000),
        runtime=minutes(15, images_per_second=200),
    params:
        code=code_of("latteclip.discover.propose"),
        settings=as_json(dataset_setting(jobs.propose_classes)),
    shell:
        "latteclip propose-classes --images {input.images} --names {input.names}"
        " --features {input.features} --settings {params.settings:q} --output {output} --log {log}"


rule discover_classes:
    input:
        proposed="results/{dataset}/proposed_classes.parquet",
        actions=user_files(dataset_setting(edits_of_classes)),
    output:
        classes="results/{dataset}/classes.txt",
        proposal="results/{dataset}/discovery.json",
    log:
        "results/{dataset}/logs/discover_classes.log",
    wildcard_constraints:
        dataset=PROPOSING,
    priority: FIRST
    resources:
        **TABLE_RESOURCES,
    params:
        code=code_of("latteclip.discover.proposal"),
        actions=optional_inputs("actions"),
    shell:
        "latteclip discover-classes --proposed {input.proposed} {params.actions}"
        " --output {output.classes} --proposal {output.proposal} --log {log}"
