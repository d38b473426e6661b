# Classes of images that have no class names (split.classes: discover): an index without classes, a
# name for each image by the captioner, and the classes that follow from names and features.

DISCOVERING = one_of(
    key for key in configuration.config["datasets"] if configuration.discovers(key)
)
# After an edit of classes.txt by hand, that file is an input of the user's.
PROPOSING = one_of(
    key
    for key in configuration.config["datasets"]
    if stage_params.proposes_classes(configuration, key)
)


use rule index_images as index_unnamed_images with:
    input:
        made=unstored(given(stage_params.made_folder, "dataset")),
        classes=[],
        code=sources("latteclip.data.index_images"),
    output:
        images="results/{dataset}/unnamed_images.parquet",
        corrupt="results/{dataset}/unnamed_corrupt.csv",
    log:
        "results/{dataset}/logs/index_unnamed_images.log",
    benchmark:
        "results/{dataset}/benchmarks/index_unnamed_images.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,
    params:
        settings=given_json(Configuration.section, "dataset", name="split"),


use rule caption_images as name_images with:
    input:
        images="results/{dataset}/unnamed_images.parquet",
        own=unstored(given(stage_params.names_file, "dataset")),
        pseudo_labels=[],
        classifier=[],
        captioner_model=given(stage_params.hub_model, "dataset", section="captioner"),
        code=sources("latteclip.captions.caption"),
        engine_code=unstored(given(stage_code.engine_code, "dataset")),
    output:
        "results/{dataset}/names.parquet",
    log:
        "results/{dataset}/logs/name_images.log",
    benchmark:
        "results/{dataset}/benchmarks/name_images.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,
    params:
        captioner=given_json(stage_params.name_images, "dataset"),
        prompt=given(
            lambda c, dataset: c.section("discover", dataset)["prompt"], "dataset"
        ),
        answers="",
        store=given(stage_params.answer_store, "dataset", kind="names"),


use rule encode_images as encode_unnamed_images with:
    input:
        images="results/{dataset}/unnamed_images.parquet",
        model=given(stage_params.hub_model, "dataset", section="clip"),
        code=sources("latteclip.labels.encode_images"),
    output:
        "results/{dataset}/unnamed_features.parquet",
    log:
        "results/{dataset}/logs/encode_unnamed_images.log",
    benchmark:
        "results/{dataset}/benchmarks/encode_unnamed_images.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,
    params:
        encoder_files=given(stage_params.local_clip, "dataset"),
        settings=given_json(stage_params.clip_encoder, "dataset"),


rule propose_classes:
    input:
        images="results/{dataset}/unnamed_images.parquet",
        names="results/{dataset}/names.parquet",
        features="results/{dataset}/unnamed_features.parquet",
        code=sources("latteclip.discover.propose_classes"),
    output:
        "results/{dataset}/proposed_classes.parquet",
    log:
        "results/{dataset}/logs/propose_classes.log",
    benchmark:
        "results/{dataset}/benchmarks/propose_classes.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,
    priority: FIRST
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("propose_classes"),
        runtime=minutes("propose_classes"),
    params:
        settings=given_json(stage_params.propose_classes, "dataset"),
    shell:
        "latteclip propose-classes --images {input.images} --names {input.names}"
        " --features {input.features} --settings {params.settings:q} --output {output} --log {log}"


rule discover_classes:
    input:
        proposed="results/{dataset}/proposed_classes.parquet",
        actions=unstored(given(stage_params.class_actions, "dataset")),
        code=sources("latteclip.discover.discover_classes"),
    output:
        classes="results/{dataset}/classes.txt",
        proposal="results/{dataset}/discovery.json",
        discovered="results/{dataset}/discovered.parquet",
    log:
        "results/{dataset}/logs/discover_classes.log",
    benchmark:
        "results/{dataset}/benchmarks/discover_classes.jsonl"
    wildcard_constraints:
        dataset=PROPOSING,
    priority: FIRST
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("discover_classes"),
        runtime=minutes("discover_classes"),
    params:
        actions=options("actions"),
    shell:
        "latteclip discover-classes --proposed {input.proposed} {params.actions}"
        " --output {output.classes} --proposal {output.proposal}"
        " --discovered {output.discovered} --log {log}"
