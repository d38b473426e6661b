# Votes for the classes of training images by further voters, each in a table of its own. A voter
# that asks what `captioner` and `scores` ask has the tables of captions.smk.


use rule caption_images as caption_images_voter with:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels=given_if(
            "results/{dataset}/pseudo_labels.parquet",
            stage_params.names_classes,
            "dataset",
            "voter",
        ),
        own=unstored(
            given(
                stage_params.user_file, "dataset", "voter", key="captioner.images_file"
            )
        ),
        captioner_model=given(
            stage_params.hub_model, "dataset", "voter", section="captioner"
        ),
        code=sources("latteclip.captions.caption"),
        engine_code=unstored(given(stage_params.engine_code, "dataset", "voter")),
    output:
        "results/{dataset}/voters/{voter}.parquet",
    log:
        "results/{dataset}/logs/caption_images-{voter}.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_images-{voter}.jsonl"
    wildcard_constraints:
        dataset=ANY_DATASET,
        voter=one_of(stage_params.asking_voters(configuration, "captions")),
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
        captioner=given_json(
            stage_params.caption_writer, "dataset", "voter", kind="images"
        ),
        prompt=given(stage_params.image_prompt, "dataset", "voter"),
        pseudo_labels=options("pseudo_labels"),
        store=given(stage_params.answer_store, "dataset", kind="images"),
        shard="--voter {voter}",


use rule rank_images as rank_images_voter with:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        captions=given_if(
            "results/{dataset}/captions/images.parquet",
            Configuration.has_captions,
            "dataset",
            kind="image",
        ),
        scores=given(stage_params.earlier_scores, "dataset", "number", "voter"),
        gains=given(stage_params.earlier_gains, "dataset", "number", "voter"),
        clip_model=given(stage_params.hub_model, "dataset", section="clip"),
        code=sources("latteclip.labels.rank_images"),
    output:
        "results/{dataset}/rounds/{voter}/expected_gains-{number}.parquet",
    log:
        "results/{dataset}/logs/rank_images-{voter}-{number}.log",
    benchmark:
        "results/{dataset}/benchmarks/rank_images-{voter}-{number}.jsonl"
    wildcard_constraints:
        number="[1-9][0-9]*",
        voter=one_of(stage_params.asking_voters(configuration, "scores")),
    params:
        settings=given_json(stage_params.rank_images, "dataset", "voter"),


use rule score_classes as score_classes_voter with:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        gains=given(stage_params.expected_gains, "dataset", "voter"),
        adapted=given_if(
            "results/{dataset}/classifiers/adapted.safetensors",
            stage_params.shows_examples,
            "dataset",
            "voter",
        ),
        own=unstored(
            given(stage_params.user_file, "dataset", "voter", key="scores.file")
        ),
        captioner_model=given(
            stage_params.hub_model, "dataset", "voter", section="captioner"
        ),
        code=sources("latteclip.captions.score_classes"),
        engine_code=unstored(given(stage_params.engine_code, "dataset", "voter")),
    output:
        "results/{dataset}/voters/{voter}.parquet",
    log:
        "results/{dataset}/logs/score_classes-{voter}.log",
    benchmark:
        "results/{dataset}/benchmarks/score_classes-{voter}.jsonl"
    wildcard_constraints:
        dataset=ANY_DATASET,
        voter=one_of(stage_params.asking_voters(configuration, "scores")),
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
        prompt=given(stage_params.scores_prompt, "dataset", "voter"),
        gains=options("gains", "adapted"),
        store=given(stage_params.answer_store, "dataset", kind="scores"),
        shard="--voter {voter}",


use rule score_classes_voter as score_classes_voter_round with:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        gains=["results/{dataset}/rounds/{voter}/expected_gains-{number}.parquet"],
        adapted=given_if(
            "results/{dataset}/classifiers/adapted.safetensors",
            stage_params.shows_examples,
            "dataset",
            "voter",
        ),
        captioner_model=given(
            stage_params.hub_model, "dataset", "voter", section="captioner"
        ),
        code=sources("latteclip.captions.score_classes"),
        engine_code=unstored(given(stage_params.engine_code, "dataset", "voter")),
    output:
        "results/{dataset}/rounds/{voter}/class_scores-{number}.parquet",
    log:
        "results/{dataset}/logs/score_classes-{voter}-round-{number}.log",
    benchmark:
        "results/{dataset}/benchmarks/score_classes-{voter}-round-{number}.jsonl"
    wildcard_constraints:
        dataset=ANY_DATASET,
        number="[1-9][0-9]*",
        voter=one_of(stage_params.asking_voters(configuration, "scores")),
    params:
        scores=given_json(stage_params.scores, "dataset", "voter", "number"),


rule write_votes:
    input:
        images="results/{dataset}/images.parquet",
        own=unstored(given(stage_params.votes_file, "dataset", "voter")),
        clip_model=given(stage_params.votes_model, "dataset", "voter"),
        code=sources("latteclip.labels.write_votes"),
        voter_code=unstored(given(stage_params.voter_code, "dataset", "voter")),
    output:
        "results/{dataset}/voters/{voter}.parquet",
    log:
        "results/{dataset}/logs/write_votes-{voter}.log",
    benchmark:
        "results/{dataset}/benchmarks/write_votes-{voter}.jsonl"
    wildcard_constraints:
        voter=one_of(stage_params.asking_voters(configuration, None)),
    priority: EARLY
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("pseudo_label_images")
    resources:
        gpu=gpus(given(job_resources.votes_gpus, "dataset", "voter")),
        mem_mb=memory("write_votes"),
        runtime=minutes("write_votes"),
    params:
        clip_files=given(stage_params.local_clip, "dataset", "voter"),
        settings=given_json(stage_params.write_votes, "dataset", "voter"),
    shell:
        "latteclip write-votes --images {input.images} --settings {params.settings:q}"
        " --output {output} --threads {threads} --log {log}"
