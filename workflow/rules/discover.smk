# Classes of images that have no class names (class_names: discover): an index without classes, a
# name for each image by the captioner, and the classes that follow from names and features.

DISCOVERING = datasets_with(lambda dataset: dataset.discovers)
# After an edit of classes.txt by hand, that file is an input of the user's.
PROPOSING = datasets_with(proposes_classes)


use rule index_images as index_unnamed_images with:
    input:
        made=users(of(jobs.made_folder)),
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
        own=users(of(lambda asked: asked.file or [], NAMES)),
        pseudo_labels=[],
        classifier=[],
        models=notes(NAMES),
    output:
        "results/{dataset}/names.parquet",
    log:
        "results/{dataset}/logs/name_images.log",
    benchmark:
        "results/{dataset}/benchmarks/name_images.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,
    params:
        captioner=as_json(lambda asked: asked.settings, NAMES),
        prompt=of(lambda asked: asked.prompt, NAMES),
        answers="",
        store=of(lambda each: jobs.shared(each, "captions/names")),


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
        settings=as_json(lambda dataset: {"classes": dataset.keys.discover.classes}),
    shell:
        "latteclip propose-classes --images {input.images} --names {input.names}"
        " --features {input.features} --settings {params.settings:q} --output {output} --log {log}"


rule discover_classes:
    input:
        proposed="results/{dataset}/proposed_classes.parquet",
        actions=users(of(lambda dataset: written(dataset, "classes.json"))),
    output:
        classes="results/{dataset}/classes.txt",
        proposal="results/{dataset}/discovery.json",
    log:
        "results/{dataset}/logs/discover_classes.log",
    wildcard_constraints:
        dataset=PROPOSING,
    priority: FIRST
    resources:
        **LIGHT,
    params:
        code=code_of("latteclip.discover.proposal"),
        actions=options("actions"),
    shell:
        "latteclip discover-classes --proposed {input.proposed} {params.actions}"
        " --output {output.classes} --proposal {output.proposal} --log {log}"
