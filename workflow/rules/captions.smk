# Image and group descriptions of the training images, and the captioner's scores of their classes.
# Answers are cached under resources/, so that no rule asks a question twice.

# None where a server or the user writes the captions.
GPUS = lambda asked: (
    asked.settings.tensor_parallel_size if asked.engine.loads_model else 0
)
CAPTIONER_THREADS = threads_of(on_gpus=True)


rule caption_images:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels=branch(
            of(lambda asked: asked.reads_pseudo_labels, IMAGES), then=PSEUDO_LABELS
        ),
        classifier=branch(of(lambda asked: asked.max_images, IMAGES), then=ADAPTED),
        own=users(of(lambda asked: asked.file or [], IMAGES)),
        models=notes(IMAGES),
    output:
        IMAGE_CAPTIONS,
    log:
        "results/{dataset}/logs/caption_images.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_images.jsonl"
    priority: EARLY
    threads: CAPTIONER_THREADS
    resources:
        **on_gpus(of(GPUS, IMAGES)),
        mem_mb=memory(24_000, per_million=4_000),
        runtime=minutes(20, images_per_second=1),
    params:
        code=of(lambda asked: code_of(*asked.modules), IMAGES),
        model_files=local_files(IMAGES),
        captioner=as_json(lambda asked: asked.settings, IMAGES),
        prompt=of(lambda asked: asked.prompt, IMAGES),
        canvas="",
        inputs=options("pseudo_labels", "classifier"),
        answers=ANSWERS_OPTION,
        # No output: Snakemake removes those before a job, and these are to outlive it.
        store=of(lambda each: jobs.shared(each, "captions/images")),
        part=part,
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
            "labellers", lambda each: not each.column and each.asks == IMAGES
        ),


use rule caption_images as caption_groups with:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels=PSEUDO_LABELS,
        classifier=branch(of(lambda asked: asked.max_images, GROUPS), then=ADAPTED),
        own=users(of(lambda asked: asked.file or [], GROUPS)),
        models=notes(GROUPS),
    output:
        GROUP_CAPTIONS,
    log:
        "results/{dataset}/logs/caption_groups.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_groups.jsonl"
    params:
        prompt=of(lambda asked: asked.prompt, GROUPS),
        canvas=of(lambda dataset: f"--canvas {dataset.keys.groups.canvas}"),
        store=of(lambda each: jobs.shared(each, "captions/groups")),


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
        classifier=branch(of(lambda asked: asked.max_images, SCORES), then=ADAPTED),
        models=notes(SCORES),
    output:
        CLASS_SCORES,
    log:
        "results/{dataset}/logs/score_classes.log",
    benchmark:
        "results/{dataset}/benchmarks/score_classes.jsonl"
    priority: EARLY
    threads: CAPTIONER_THREADS
    resources:
        **on_gpus(of(GPUS, SCORES)),
        mem_mb=memory(24_000, per_million=4_000),
        runtime=minutes(20, images_per_second=0.5),  # options are asked about in two orders
    params:
        code=of(lambda asked: code_of(*asked.modules), SCORES),
        model_files=local_files(SCORES),
        captioner=as_json(lambda asked: asked.settings, SCORES),
        scores=as_json(lambda asked: asked.scores, SCORES),
        # May be empty, and then Snakemake writes no quotes: hence --prompt= below.
        prompt=of(lambda asked: asked.prompt, SCORES),
        inputs=options("classifier"),
        answers=ANSWERS_OPTION,
        store=of(lambda each: jobs.shared(each, "captions/scores")),
        part=part,
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
            "labellers", lambda each: not each.column and each.asks == SCORES
        ),


# Where it applies, the table is gathered.
ruleorder: gather_captions > caption_images > caption_groups > score_classes


rule gather_captions:
    input:
        images="results/{dataset}/images.parquet",
        shards=of(jobs.shards, "dataset", "table"),
    output:
        "results/{dataset}/{table}.parquet",
    log:
        "results/{dataset}/logs/gather_captions/{table}.log",
    wildcard_constraints:
        dataset=datasets_with(lambda dataset: dataset.shards > 1),
        table="captions/images|captions/groups|class_scores",
    resources:
        **LIGHT,
    params:
        code=code_of("latteclip.captions.caption"),
    shell:
        "latteclip gather-captions {input.shards} --images {input.images} --output {output}"
        " --log {log}"
