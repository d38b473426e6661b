# Labels of the training images, and classifiers, by zero-shot scores, image features and captions.


rule adapt_zero_shot:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        code=sources("latteclip.labels.adapt_zero_shot"),
    output:
        ADAPTED,
    log:
        "results/{dataset}/logs/adapt_zero_shot.log",
    benchmark:
        "results/{dataset}/benchmarks/adapt_zero_shot.jsonl"
    priority: FIRST
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("adapt_zero_shot"),
        runtime=minutes("adapt_zero_shot"),
    shell:
        "latteclip adapt-zero-shot --images {input.images}"
        " --pseudo-labels {input.pseudo_labels} --class-embeddings {input.class_embeddings}"
        " --output {output} --log {log}"


rule encode_images:
    input:
        images="results/{dataset}/images.parquet",
        model=given_if(
            lambda c, encoder: encoder in c.hub_encoders(),
            "resources/models/{encoder}.json",
        ),
        code=sources("latteclip.labels.encode_images"),
    output:
        "results/{dataset}/image_encoders/{encoder}.parquet",
    log:
        "results/{dataset}/logs/encode_images-{encoder}.log",
    benchmark:
        "results/{dataset}/benchmarks/encode_images-{encoder}.jsonl"
    wildcard_constraints:
        encoder=one_of(configuration.image_encoders),
    priority: FIRST
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("pseudo_label_images")
    resources:
        gpu=gpus(),
        mem_mb=memory("encode_images"),
        runtime=minutes("encode_images"),
    params:
        encoder_files=given(stage_params.local_encoder),
        settings=given_json(stage_params.encode_images),
    shell:
        "latteclip encode-images --images {input.images} --settings {params.settings:q}"
        " --output {output} --threads {threads} --log {log}"


ENCODERS_CLASSIFIER = {}
if configuration.image_encoders:
    ENCODERS_CLASSIFIER["encoders_prototypes"] = (
        "results/{dataset}/classifiers/image_prototypes_encoders.safetensors"
    )


rule fuse_labels:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        voter_table=given(stage_params.voter_table),
        answers=unstored(given(stage_params.teaching_answers)),
        image_encoders=given(stage_params.image_features),
        clip_model=given(stage_params.hub_model, section="clip"),
        code=sources("latteclip.labels.fuse_labels"),
        voter_code=unstored(given(stage_params.voter_code)),
    output:
        **ENCODERS_CLASSIFIER,
        labels=FUSED_LABELS,
        report=FUSION_REPORT,
        prototypes="results/{dataset}/classifiers/image_prototypes.safetensors",
        votes="results/{dataset}/votes.parquet",
    log:
        "results/{dataset}/logs/fuse_labels.log",
    benchmark:
        "results/{dataset}/benchmarks/fuse_labels.jsonl"
    priority: FIRST
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("pseudo_label_images")
    resources:
        gpu=gpus(),
        mem_mb=memory("fuse_labels"),
        runtime=minutes("fuse_labels"),
    params:
        clip_files=given(stage_params.local_clip),
        settings=given_json(stage_params.fuse_labels),
        voter=given(Configuration.voter),
        answers=options("answers"),
        image_encoders=options("image_encoders"),
        encoders_prototypes=lambda wildcards, output: " ".join(
            f"--{name.replace('_', '-')} {output[name]}"
            for name in ENCODERS_CLASSIFIER
        ),
    shell:
        "latteclip fuse-labels --images {input.images}"
        " --pseudo-labels {input.pseudo_labels} --class-embeddings {input.class_embeddings}"
        " --voter {params.voter} --voter-table {input.voter_table} {params.answers}"
        " {params.image_encoders} {params.encoders_prototypes} --settings {params.settings:q}"
        " --output {output.labels} --report {output.report}"
        " --prototypes {output.prototypes} --votes {output.votes} --threads {threads} --log {log}"
