# Image and group descriptions of the training images, and the captioner's scores of their classes.
# Answers are cached under resources/, so that no rule asks a question twice.


rule caption_images:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels=branch(
            captioner_setting(IMAGES, "reads_pseudo_labels"), then=PSEUDO_LABELS
        ),
        classifier=branch(captioner_setting(IMAGES, "max_images"), then=ADAPTED),
        own=user_files(captioner_setting(IMAGES, "files")),
        models=captioner_setting(IMAGES, notes_on_models),
    output:
        IMAGE_CAPTIONS,
    log:
        "results/{dataset}/logs/caption_images.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_images.jsonl"
    priority: EARLY
    threads: threads_of(on_gpus=True)
    resources:
        **gpus(captioner_setting(IMAGES, "gpus")),
        mem_mb=memory(24_000, per_million=4_000),
        runtime=minutes(20, images_per_second=1),
    params:
        code=captioner_setting(IMAGES, jobs.captioner_code),
        model_files=captioner_setting(IMAGES, digests_of_models),
        captioner=as_json(captioner_setting(IMAGES, "settings")),
        prompt=captioner_setting(IMAGES, "prompt"),
        canvas="",
        inputs=optional_inputs("pseudo_labels", "classifier"),
        answers=ANSWERS_OPTION,
        # No output: Snakemake removes those before a job, and these are to outlive it.
        store=shared_folder("captions/images"),
        part=shard_or_labeller,
    shell:
        "latteclip caption-images --images {input.images} {params.inputs} {params.answers}"
        " --prompt {params.prompt:q} {params.canvas} --captioner {params.captioner:q}"
        " --store {params.store} {params.part} --output {output} --threads {threads} --log {log}"


use rule caption_images as caption_images_shard with:
    output:
        temp("results/{dataset}/captions/shards/images-{shard}-of-{shards}.parquet"),
    log:
        "results/{dataset}/logs/caption_images-{shard}-of-{shards}.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_images-{shard}-of-{shards}.jsonl"


use rule caption_images as caption_images_labeller with:
    output:
        "results/{dataset}/labellers/{labeller}.parquet",
    log:
        "results/{dataset}/logs/caption_images-{labeller}.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_images-{labeller}.jsonl"
    wildcard_constraints:
        labeller=labellers_with(
            "labellers",
            lambda labeller: not labeller.column and labeller.asks == IMAGES,
        ),


use rule caption_images as caption_groups with:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels=PSEUDO_LABELS,
        classifier=branch(captioner_setting(GROUPS, "max_images"), then=ADAPTED),
        own=user_files(captioner_setting(GROUPS, "files")),
        models=captioner_setting(GROUPS, notes_on_models),
    output:
        GROUP_CAPTIONS,
    log:
        "results/{dataset}/logs/caption_groups.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_groups.jsonl"
    params:
        prompt=captioner_setting(GROUPS, "prompt"),
        canvas=dataset_setting(lambda dataset: f"--canvas {dataset.keys.groups.canvas}"),
        store=shared_folder("captions/groups"),


use rule caption_groups as caption_groups_shard with:
    output:
        temp("results/{dataset}/captions/shards/groups-{shard}-of-{shards}.parquet"),
    log:
        "results/{dataset}/logs/caption_groups-{shard}-of-{shards}.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_groups-{shard}-of-{shards}.jsonl"


rule score_classes:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels=PSEUDO_LABELS,
        class_embeddings=CLASS_EMBEDDINGS,
        classifier=branch(captioner_setting(SCORES, "max_images"), then=ADAPTED),
        models=captioner_setting(SCORES, notes_on_models),
    output:
        CLASS_SCORES,
    log:
        "results/{dataset}/logs/score_classes.log",
    benchmark:
        "results/{dataset}/benchmarks/score_classes.jsonl"
    priority: EARLY
    threads: threads_of(on_gpus=True)
    resources:
        **gpus(captioner_setting(SCORES, "gpus")),
        mem_mb=memory(24_000, per_million=4_000),
        runtime=minutes(20, images_per_second=0.5),  # options are asked about in two orders
    params:
        code=captioner_setting(SCORES, jobs.captioner_code),
        model_files=captioner_setting(SCORES, digests_of_models),
        captioner=as_json(captioner_setting(SCORES, "settings")),
        scores=as_json(captioner_setting(SCORES, "scores")),
        # May be empty, and then Snakemake writes no quotes: hence --prompt= below.
        prompt=captioner_setting(SCORES, "prompt"),
        inputs=optional_inputs("classifier"),
        answers=ANSWERS_OPTION,
        store=shared_folder("captions/scores"),
        part=shard_or_labeller,
    shell:
        "latteclip score-classes --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " --class-embeddings {input.class_embeddings} {params.inputs} {params.answers}"
        " --scores {params.scores:q} --prompt={params.prompt:q}"
        " --captioner {params.captioner:q} --store {params.store} {params.part}"
        " --output {output} --threads {threads} --log {log}"


use rule score_classes as score_classes_shard with:
    output:
        temp(
            "results/{dataset}/captions/shards/class_scores-{shard}-of-{shards}.parquet"
        ),
    log:
        "results/{dataset}/logs/score_classes-{shard}-of-{shards}.log",
    benchmark:
        "results/{dataset}/benchmarks/score_classes-{shard}-of-{shards}.jsonl"


use rule score_classes as score_classes_labeller with:
    output:
        "results/{dataset}/labellers/{labeller}.parquet",
    log:
        "results/{dataset}/logs/score_classes-{labeller}.log",
    benchmark:
        "results/{dataset}/benchmarks/score_classes-{labeller}.jsonl"
    wildcard_constraints:
        labeller=labellers_with(
            "labellers",
            lambda labeller: not labeller.column and labeller.asks == SCORES,
        ),


# Where it applies, the table is gathered.
ruleorder: gather_captions > caption_images > caption_groups > score_classes


rule gather_captions:
    input:
        images="results/{dataset}/images.parquet",
        shards=shards_of_table,
    output:
        "results/{dataset}/{table}.parquet",
    log:
        "results/{dataset}/logs/gather_captions/{table}.log",
    wildcard_constraints:
        dataset=one_of(dataset.name for dataset in run.datasets if dataset.shards > 1),
        table="captions/images|captions/groups|class_scores",
    resources:
        **TABLE_RESOURCES,
    params:
        code=code_of("latteclip.captions.caption"),
    shell:
        "latteclip gather-captions {input.shards} --images {input.images} --output {output}"
        " --log {log}"
