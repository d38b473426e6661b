# Labels of the training images, and classifiers, by zero-shot scores, image features and captions.


rule adapt_zero_shot:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        code=sources("latteclip.labels.fuse_labels"),
    output:
        "results/{dataset}/classifiers/adapted.safetensors",
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
            "resources/models/{encoder}.json",
            lambda c, encoder: encoder in c.hub_encoders(),
            "encoder",
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
        encoder_files=given(stage_params.local_encoder, "encoder"),
        settings=given_json(stage_params.encode_images, "dataset", "encoder"),
    shell:
        "latteclip encode-images --images {input.images} --settings {params.settings:q}"
        " --output {output} --threads {threads} --log {log}"


rule encode_examples:
    input:
        images="results/{dataset}/images.parquet",
        models=given(stage_params.example_models, "dataset"),
        code=sources("latteclip.labels.encode_images"),
    output:
        "results/{dataset}/examples.parquet",
    log:
        "results/{dataset}/logs/encode_examples.log",
    benchmark:
        "results/{dataset}/benchmarks/encode_examples.jsonl"
    wildcard_constraints:
        dataset=one_of(
            key
            for key in configuration.config["datasets"]
            if stage_params.examples_folder(configuration, key)
        ),
    priority: FIRST
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("pseudo_label_images")
    resources:
        gpu=gpus(),
        mem_mb=memory("encode_examples"),
        runtime=minutes("encode_examples"),
    params:
        examples=given(stage_params.example_images, "dataset"),
        clip_files=given(stage_params.local_clip, "dataset"),
        encoder_files=[
            stage_params.local_encoder(configuration, encoder)
            for encoder in configuration.image_encoders
        ],
        settings=given_json(stage_params.encode_examples, "dataset"),
    shell:
        "latteclip encode-examples --images {input.images} --settings {params.settings:q}"
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
        adapted="results/{dataset}/classifiers/adapted.safetensors",
        votes=given_each("table", stage_params.labellers, "dataset"),
        answers=unstored(given(stage_params.teaching_answers, "dataset")),
        examples=given(stage_params.examples, "dataset"),
        image_encoders=given(stage_params.image_features, "dataset"),
        code=sources("latteclip.labels.fuse_labels"),
    output:
        **ENCODERS_CLASSIFIER,
        labels="results/{dataset}/fused_labels.parquet",
        report="results/{dataset}/fused_labels.json",
        prototypes="results/{dataset}/classifiers/image_prototypes.safetensors",
        votes="results/{dataset}/votes.parquet",
        voter_labels="results/{dataset}/voter_labels.parquet",
    log:
        "results/{dataset}/logs/fuse_labels.log",
    benchmark:
        "results/{dataset}/benchmarks/fuse_labels.jsonl"
    priority: FIRST
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("pseudo_label_images")
    resources:
        mem_mb=memory("fuse_labels"),
        runtime=minutes("fuse_labels"),
    params:
        labellers=as_found(given_json(stage_params.labellers, "dataset")),
        answers=options("answers", "examples"),
        image_encoders=options("image_encoders"),
        encoders_prototypes=lambda wildcards, output: " ".join(
            f"--{name.replace('_', '-')} {output[name]}"
            for name in ENCODERS_CLASSIFIER
        ),
    shell:
        "latteclip fuse-labels --images {input.images}"
        " --pseudo-labels {input.pseudo_labels} --class-embeddings {input.class_embeddings}"
        " --adapted {input.adapted} --labellers {params.labellers:q} {params.answers}"
        " {params.image_encoders} {params.encoders_prototypes}"
        " --output {output.labels} --report {output.report}"
        " --prototypes {output.prototypes} --votes {output.votes}"
        " --voter-labels {output.voter_labels} --log {log}"
