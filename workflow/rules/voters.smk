# Votes of labellers for the classes of training images, each in a table of its own. A labeller that
# asks what `captioner` and `scores` ask has the answers of captions.smk.


use rule caption_images as caption_images_voter with:
    output:
        "results/{dataset}/voters/{voter}.parquet",
    log:
        "results/{dataset}/logs/caption_images-{voter}.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_images-{voter}.jsonl"
    wildcard_constraints:
        dataset=ANY_DATASET,
        voter=one_of(stage_params.asking_voters(configuration, "captions")),
    params:
        shard="--voter {voter}",


use rule score_classes as score_classes_voter with:
    output:
        "results/{dataset}/voters/{voter}.parquet",
    log:
        "results/{dataset}/logs/score_classes-{voter}.log",
    benchmark:
        "results/{dataset}/benchmarks/score_classes-{voter}.jsonl"
    wildcard_constraints:
        dataset=ANY_DATASET,
        voter=one_of(stage_params.asking_voters(configuration, "scores")),
    params:
        shard="--voter {voter}",


rule write_votes:
    input:
        images="results/{dataset}/images.parquet",
        captions=given(stage_params.votes_inputs, "dataset", "voter"),
        own=unstored(given(stage_params.votes_file, "dataset", "voter")),
        clip_model=given(stage_params.votes_model, "dataset", "voter"),
        code=sources("latteclip.labels.write_votes"),
    output:
        "results/{dataset}/votes/{voter}.parquet",
    log:
        "results/{dataset}/logs/write_votes-{voter}.log",
    benchmark:
        "results/{dataset}/benchmarks/write_votes-{voter}.jsonl"
    wildcard_constraints:
        voter=one_of(stage_params.writing_voters(configuration)),
    priority: EARLY
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("pseudo_label_images")
    resources:
        gpu=gpus(given(job_resources.votes_gpus, "dataset", "voter")),
        mem_mb=memory("write_votes"),
        runtime=minutes("write_votes"),
    params:
        clip_files=given(stage_params.votes_clip, "dataset", "voter"),
        settings=given_json(stage_params.write_votes, "dataset", "voter"),
        captions=option_each("captions", "captions", "class_embeddings"),
    shell:
        "latteclip write-votes --images {input.images} --settings {params.settings:q}"
        " {params.captions} --output {output} --threads {threads} --log {log}"
