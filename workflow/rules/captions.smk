# Image and group descriptions of the training images, and the captioner's scores of their classes.
# Answers are cached under resources/, so that no rule asks a question twice.

shards_of = {key: configuration.shards(key) for key in configuration.config["datasets"]}
UNSHARDED = one_of(key for key, n in shards_of.items() if n == 1)
SHARDED = one_of(key for key, n in shards_of.items() if n > 1)


rule caption_images:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels=given(stage_params.caption_labels, "dataset", "voter"),
        classifier=given(stage_params.chosen_by, "dataset", "voter", kind="images"),
        own=unstored(
            given(
                stage_params.user_file, "dataset", "voter", key="captioner.images_file"
            )
        ),
        captioner_model=given(
            stage_params.hub_model, "dataset", "voter", section="captioner"
        ),
        code=sources("latteclip.captions.caption"),
        engine_code=unstored(given(stage_code.engine_code, "dataset", "voter")),
    output:
        "results/{dataset}/captions/images.parquet",
    log:
        "results/{dataset}/logs/caption_images.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_images.jsonl"
    wildcard_constraints:
        dataset=UNSHARDED,
    priority: EARLY
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("caption")
    resources:
        gpu=gpus(given(job_resources.captioner_gpus, "dataset", "voter")),
        cpus_per_gpu=cores_per_gpu(
            given(job_resources.captioner_gpus, "dataset", "voter")
        ),
        nodes=1,
        mem_mb=memory("caption_images"),
        runtime=minutes("caption_images"),
    params:
        captioner_files=given(stage_params.local_captioner, "dataset", "voter"),
        captioner=given_json(stage_params.caption_writer, "dataset", "voter"),
        prompt=given(stage_params.image_prompt, "dataset", "voter"),
        inputs=options("pseudo_labels", "classifier"),
        answers=given(stage_params.person_answers, "dataset", "voter", kind="images"),
        # No output: Snakemake removes those before a job, and these are to outlive it.
        store=given(stage_params.answer_store, "dataset", kind="images"),
        shard="",
    shell:
        "latteclip caption-images --images {input.images} {params.inputs} {params.answers}"
        " --prompt {params.prompt:q} --captioner {params.captioner:q} --store {params.store}"
        " {params.shard} --output {output} --threads {threads} --log {log}"


use rule caption_images as caption_images_shard with:
    output:
        temp("results/{dataset}/captions/shards/images-{shard}-of-{shards}.parquet"),
    log:
        "results/{dataset}/logs/caption_images-{shard}-of-{shards}.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_images-{shard}-of-{shards}.jsonl"
    wildcard_constraints:
        dataset=ANY_DATASET,
    params:
        shard="--shard {shard}/{shards}",


rule caption_groups:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        classifier=given(stage_params.chosen_by, "dataset", kind="groups"),
        own=unstored(
            given(stage_params.user_file, "dataset", key="captioner.groups_file")
        ),
        captioner_model=given(stage_params.hub_model, "dataset", section="captioner"),
        code=sources("latteclip.captions.caption"),
        engine_code=unstored(given(stage_code.engine_code, "dataset")),
    output:
        "results/{dataset}/captions/groups.parquet",
    log:
        "results/{dataset}/logs/caption_groups.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_groups.jsonl"
    wildcard_constraints:
        dataset=UNSHARDED,
    priority: EARLY
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("caption")
    resources:
        gpu=gpus(given(job_resources.captioner_gpus, "dataset")),
        cpus_per_gpu=cores_per_gpu(given(job_resources.captioner_gpus, "dataset")),
        nodes=1,
        mem_mb=memory("caption_groups"),
        runtime=minutes("caption_groups"),
    params:
        captioner_files=given(stage_params.local_captioner, "dataset"),
        captioner=given_json(stage_params.caption_writer, "dataset"),
        groups=given_json(Configuration.section, "dataset", name="groups"),
        prompt=given(
            lambda c, dataset: c.section("prompts", dataset)["group"], "dataset"
        ),
        inputs=options("classifier"),
        answers=given(stage_params.person_answers, "dataset", kind="groups"),
        store=given(stage_params.answer_store, "dataset", kind="groups"),
        shard="",
    shell:
        "latteclip caption-groups --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " --prompt {params.prompt:q} --groups {params.groups:q}"
        " --captioner {params.captioner:q} {params.inputs} {params.answers}"
        " --store {params.store} {params.shard}"
        " --output {output} --threads {threads} --log {log}"


use rule caption_groups as caption_groups_shard with:
    output:
        temp("results/{dataset}/captions/shards/groups-{shard}-of-{shards}.parquet"),
    log:
        "results/{dataset}/logs/caption_groups-{shard}-of-{shards}.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_groups-{shard}-of-{shards}.jsonl"
    wildcard_constraints:
        dataset=ANY_DATASET,
    params:
        shard="--shard {shard}/{shards}",


rule score_classes:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        classifier=given(stage_params.chosen_by, "dataset", "voter", kind="scores"),
        own=unstored(
            given(stage_params.user_file, "dataset", "voter", key="scores.file")
        ),
        captioner_model=given(
            stage_params.hub_model, "dataset", "voter", section="captioner"
        ),
        code=sources("latteclip.captions.score_classes"),
        engine_code=unstored(given(stage_code.engine_code, "dataset", "voter")),
    output:
        "results/{dataset}/class_scores.parquet",
    log:
        "results/{dataset}/logs/score_classes.log",
    benchmark:
        "results/{dataset}/benchmarks/score_classes.jsonl"
    wildcard_constraints:
        dataset=UNSHARDED,
    priority: EARLY
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("caption")
    resources:
        gpu=gpus(given(job_resources.captioner_gpus, "dataset", "voter")),
        cpus_per_gpu=cores_per_gpu(
            given(job_resources.captioner_gpus, "dataset", "voter")
        ),
        nodes=1,
        mem_mb=memory("score_classes"),
        runtime=minutes(
            "score_classes",
            given(job_resources.questions_per_image, "dataset", "voter"),
        ),
    params:
        captioner_files=given(stage_params.local_captioner, "dataset", "voter"),
        captioner=given_json(stage_params.captioner, "dataset", "voter"),
        scores=given_json(stage_params.scores, "dataset", "voter"),
        # May be empty, and then Snakemake writes no quotes: hence --prompt= below.
        prompt=given(stage_params.scores_prompt, "dataset", "voter"),
        inputs=options("classifier"),
        answers=given(stage_params.person_answers, "dataset", "voter", kind="scores"),
        store=given(stage_params.answer_store, "dataset", kind="scores"),
        shard="",
    shell:
        "latteclip score-classes --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " --class-embeddings {input.class_embeddings} {params.inputs} {params.answers}"
        " --scores {params.scores:q} --prompt={params.prompt:q}"
        " --captioner {params.captioner:q} --store {params.store} {params.shard}"
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
    wildcard_constraints:
        dataset=ANY_DATASET,
    params:
        shard="--shard {shard}/{shards}",


rule gather_captions:
    input:
        images="results/{dataset}/images.parquet",
        shards=given(stage_params.shards, "dataset", "kind"),
        code=sources("latteclip.captions.caption"),
    output:
        "results/{dataset}/captions/{kind}.parquet",
    log:
        "results/{dataset}/logs/gather_captions-{kind}.log",
    wildcard_constraints:
        dataset=SHARDED,
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("gather_captions"),
        runtime=minutes("gather_captions"),
    shell:
        "latteclip gather-captions {input.shards} --images {input.images} --output {output}"
        " --log {log}"


use rule gather_captions as gather_scores with:
    input:
        images="results/{dataset}/images.parquet",
        shards=given(stage_params.shards, "dataset", kind="class_scores"),
        code=sources("latteclip.captions.caption"),
    output:
        "results/{dataset}/class_scores.parquet",
    log:
        "results/{dataset}/logs/gather_scores.log",


rule summarize_captions:
    input:
        images="results/{dataset}/images.parquet",
        captions=given(stage_params.captions, "dataset"),
        code=sources("latteclip.captions.summarize_captions"),
    output:
        "results/{dataset}/captions/summary.json",
    log:
        "results/{dataset}/logs/summarize_captions.log",
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("summarize_captions"),
        runtime=minutes("summarize_captions"),
    shell:
        "latteclip summarize-captions {input.captions} --images {input.images} --output {output}"
        " --log {log}"
