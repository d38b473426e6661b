# Classes of images that have no class names (split.classes: discover): an index without classes, a
# name for each image by the captioner, and the classes that follow from names and looks.

DISCOVERING = one_of(
    key for key in configuration.config["datasets"] if configuration.discovers(key)
)


use rule index_images as index_unnamed_images with:
    input:
        made=unstored(given(stage_params.made_folder)),
        code=sources("latteclip.data.index_images"),
    output:
        images="results/{dataset}/unnamed_images.parquet",
        corrupt="results/{dataset}/unnamed_corrupt.csv",
        fingerprints="results/{dataset}/unnamed_fingerprints.parquet",
    log:
        "results/{dataset}/logs/index_unnamed_images.log",
    benchmark:
        "results/{dataset}/benchmarks/index_unnamed_images.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,
    params:
        folder=given(stage_params.data_folder),
        settings=given_json(stage_params.index_unnamed_images),
        state=lambda wildcards: functions.folder_state(wildcards.dataset),


use rule caption_images as name_images with:
    input:
        images="results/{dataset}/unnamed_images.parquet",
        own=unstored(given(stage_params.names_file)),
        captioner_model=given(stage_params.hub_model, section="captioner"),
        code=sources("latteclip.captions.caption"),
        engine_code=unstored(given(stage_params.engine_code)),
    output:
        "results/{dataset}/names.parquet",
    log:
        "results/{dataset}/logs/name_images.log",
    benchmark:
        "results/{dataset}/benchmarks/name_images.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,
    params:
        captioner_files=given(stage_params.local_captioner),
        captioner=given_json(stage_params.name_images),
        prompt=given(lambda c, dataset: c.section("discover", dataset)["prompt"]),
        pseudo_labels="",
        store=given(stage_params.answer_store, kind="names"),
        shard="",


rule encode_looks:
    input:
        images="results/{dataset}/unnamed_images.parquet",
        clip_model=given(stage_params.hub_model, section="clip"),
        code=sources("latteclip.discover.encode_looks"),
    output:
        "results/{dataset}/looks.parquet",
    log:
        "results/{dataset}/logs/encode_looks.log",
    benchmark:
        "results/{dataset}/benchmarks/encode_looks.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,
    priority: FIRST
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("pseudo_label_images")
    resources:
        gpu=gpus(),
        mem_mb=memory("encode_looks"),
        runtime=minutes("encode_looks"),
    params:
        clip_files=given(stage_params.local_clip),
        settings=given_json(stage_params.encode_looks),
    shell:
        "latteclip encode-looks --images {input.images} --settings {params.settings:q}"
        " --output {output} --threads {threads} --log {log}"


rule discover_classes:
    input:
        images="results/{dataset}/unnamed_images.parquet",
        names="results/{dataset}/names.parquet",
        looks="results/{dataset}/looks.parquet",
        actions=unstored(given(stage_params.class_actions)),
        code=sources("latteclip.discover.discover_classes"),
    output:
        classes="results/{dataset}/classes.txt",
        proposal="results/{dataset}/discovery.json",
        members="results/{dataset}/discovered.parquet",
    log:
        "results/{dataset}/logs/discover_classes.log",
    benchmark:
        "results/{dataset}/benchmarks/discover_classes.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,
    priority: FIRST
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("discover_classes"),
        runtime=minutes("discover_classes"),
    params:
        settings=given_json(stage_params.discover_classes),
        actions=options("actions"),
    shell:
        "latteclip discover-classes --images {input.images} --names {input.names}"
        " --looks {input.looks} {params.actions} --settings {params.settings:q}"
        " --output {output.classes} --proposal {output.proposal} --members {output.members}"
        " --log {log}"
