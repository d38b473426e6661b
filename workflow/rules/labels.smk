# Zero-shot pseudo-labels and image features of all splits, labels of the training images and classifiers
# by zero-shot scores, image features and labellers, and what belongs to no class.


rule pseudo_label_images:
    input:
        images="results/{dataset}/images.parquet",
        features="results/{dataset}/image_features.parquet",
        models=dataset_setting(notes_on_models),
    output:
        labels=PSEUDO_LABELS,
        class_embeddings=CLASS_EMBEDDINGS,
    log:
        "results/{dataset}/logs/pseudo_label_images.log",
    benchmark:
        "results/{dataset}/benchmarks/pseudo_label_images.jsonl"
    priority: FIRST
    threads: threads_of()
    resources:
        **gpus(),
        **ENCODING_RESOURCES,
    params:
        code=code_of("latteclip.labels.pseudo_label_images"),
        model_files=dataset_setting(digests_of_models),
        settings=as_json(dataset_setting(jobs.pseudo_label_images)),
    shell:
        "latteclip pseudo-label-images --images {input.images} --features {input.features}"
        " --settings {params.settings:q}"
        " --output {output.labels} --class-embeddings {output.class_embeddings} --threads {threads} --log {log}"


rule score_unknown:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels=PSEUDO_LABELS,
        class_embeddings=CLASS_EMBEDDINGS,
        class_scores=branch(dataset_setting("keys.scores.kind"), then=CLASS_SCORES),
        answers=ANSWERS,
    output:
        scores="results/{dataset}/unknown.parquet",
        detector="results/{dataset}/classifiers/unknown.safetensors",
    log:
        "results/{dataset}/logs/score_unknown.log",
    benchmark:
        "results/{dataset}/benchmarks/score_unknown.jsonl"
    resources:
        mem_mb=memory(8_000, per_million=8_000),
        runtime=minutes(15, images_per_second=100),
    params:
        code=code_of("latteclip.labels.score_unknown"),
        settings=as_json(dataset_setting("keys.unknown")),
        scores=optional_inputs("class_scores", "answers"),
    shell:
        "latteclip score-unknown --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " --class-embeddings {input.class_embeddings} {params.scores} --settings {params.settings:q}"
        " --output {output.scores} --detector {output.detector} --log {log}"


# The files that labels are made of, by name.
LABEL_FILES = {
    "images": "results/{dataset}/images.parquet",
    "pseudo_labels": PSEUDO_LABELS,
    "class_embeddings": CLASS_EMBEDDINGS,
    "duplicates": "results/{dataset}/duplicates.parquet",
}
FUSED_LABEL_FILES = {
    **LABEL_FILES,
    "adapted": ADAPTED,
    "answers": ANSWERS,
    "examples": branch(
        dataset_setting("keys.split.examples"),
        then="results/{dataset}/examples.parquet",
    ),
}


rule adapt_zero_shot:
    input:
        **LABEL_FILES,
    output:
        ADAPTED,
    log:
        "results/{dataset}/logs/adapt_zero_shot.log",
    benchmark:
        "results/{dataset}/benchmarks/adapt_zero_shot.jsonl"
    priority: FIRST
    resources:
        mem_mb=memory(8_000, per_million=8_000),
        runtime=minutes(15, images_per_second=100),
    params:
        code=code_of("latteclip.labels.fuse_labels"),
        files=inputs_as_json(*LABEL_FILES),
    shell:
        "latteclip adapt-zero-shot --files {params.files:q} --output {output} --log {log}"


rule encode_images:
    input:
        images="results/{dataset}/images.parquet",
        models=lambda wildcards: jobs.model_notes(run.encoder_models(wildcards.encoder)),
    output:
        features="results/{dataset}/image_encoders/{encoder}.parquet",
        model=directory("results/{dataset}/image_encoders/{encoder}"),
    log:
        "results/{dataset}/logs/encode_images-{encoder}.log",
    benchmark:
        "results/{dataset}/benchmarks/encode_images-{encoder}.jsonl"
    wildcard_constraints:
        encoder=one_of(run.image_encoders),
    priority: FIRST
    threads: threads_of()
    resources:
        **gpus(),
        **ENCODING_RESOURCES,
    params:
        code=code_of("latteclip.clip.encode_images"),
        model_files=lambda wildcards: jobs.model_digests(
            run.encoder_models(wildcards.encoder)
        ),
        encoder=lambda wildcards: run.image_encoders[wildcards.encoder],
        clip=as_json(dataset_setting(jobs.encode_images)),
        # No output, like the store of answers.
        store=dataset_setting(jobs.feature_store),
        model=lambda wildcards, output: f"--model {output.model}",
    shell:
        "latteclip encode-images --images {input.images} --encoder={params.encoder:q}"
        " --clip {params.clip:q} --store {params.store} --output {output.features} {params.model} --threads {threads} --log {log}"


use rule encode_images as encode_clip_images with:
    input:
        images="results/{dataset}/images.parquet",
        models=dataset_setting(notes_on_models),
    output:
        features="results/{dataset}/image_features.parquet",
        model=directory(CLIP),
        seconds="results/{dataset}/encoding.json",
    log:
        "results/{dataset}/logs/encode_clip_images.log",
    benchmark:
        "results/{dataset}/benchmarks/encode_clip_images.jsonl"
    params:
        model_files=dataset_setting(digests_of_models),
        encoder="",
        clip=as_json(dataset_setting("keys.clip")),
        model=lambda wildcards, output: f"--model {output.model} --seconds {output.seconds}",


use rule encode_images as encode_unnamed_images with:
    input:
        images="results/{dataset}/unnamed_images.parquet",
        models=dataset_setting(notes_on_models),
    output:
        features="results/{dataset}/unnamed_features.parquet",
    log:
        "results/{dataset}/logs/encode_unnamed_images.log",
    benchmark:
        "results/{dataset}/benchmarks/encode_unnamed_images.jsonl"
    wildcard_constraints:
        dataset=DISCOVERING,
    params:
        model_files=dataset_setting(digests_of_models),
        encoder="",
        clip=as_json(dataset_setting("keys.clip")),
        model="",


rule encode_examples:
    input:
        images="results/{dataset}/images.parquet",
        models=dataset_setting(lambda dataset: jobs.model_notes(dataset.all_models)),
    output:
        "results/{dataset}/examples.parquet",
    log:
        "results/{dataset}/logs/encode_examples.log",
    benchmark:
        "results/{dataset}/benchmarks/encode_examples.jsonl"
    wildcard_constraints:
        dataset=one_of(
            dataset.name for dataset in run.datasets if dataset.keys.split.examples
        ),
    priority: FIRST
    threads: threads_of()
    resources:
        **gpus(),
        **ENCODING_RESOURCES,
    params:
        code=code_of("latteclip.clip.encode_images"),
        examples=dataset_setting(jobs.examples_digest),
        model_files=dataset_setting(
            lambda dataset: jobs.model_digests(dataset.all_models)
        ),
        settings=as_json(dataset_setting(jobs.encode_examples)),
        store=dataset_setting(jobs.feature_store),
    shell:
        "latteclip encode-examples --images {input.images} --settings {params.settings:q}"
        " --store {params.store} --output {output} --threads {threads} --log {log}"


# The votes of a labeller, from its captions, its file or its CLIP. One that scores classes has the
# answers of score_classes.
rule write_votes:
    input:
        images="results/{dataset}/images.parquet",
        captions=branch(
            labeller_setting("captioner"),
            then=labeller_setting("captioner.path"),
        ),
        class_embeddings=branch(labeller_setting("asks"), then=CLASS_EMBEDDINGS),
        own=user_files(labeller_setting("files")),
        models=labeller_setting(notes_on_models),
    output:
        "results/{dataset}/votes/{labeller}.parquet",
    log:
        "results/{dataset}/logs/write_votes-{labeller}.log",
    benchmark:
        "results/{dataset}/benchmarks/write_votes-{labeller}.jsonl"
    wildcard_constraints:
        labeller=labellers_with("votes", lambda labeller: labeller.asks != SCORES),
    priority: EARLY
    threads: threads_of()
    resources:
        **gpus(labeller_setting("gpus")),
        **ENCODING_RESOURCES,
    params:
        code=code_of("latteclip.labels.write_votes"),
        model_files=labeller_setting(digests_of_models),
        settings=as_json(labeller_setting(jobs.write_votes)),
        captions=optional_inputs("captions", "class_embeddings"),
        store=dataset_setting(jobs.feature_store),
    shell:
        "latteclip write-votes --images {input.images} --settings {params.settings:q}"
        " {params.captions} --store {params.store} --output {output} --threads {threads} --log {log}"


rule fuse_labels:
    input:
        **FUSED_LABEL_FILES,
        votes=dataset_setting("vote_tables"),
        image_encoders=IMAGE_ENCODER_FEATURES,
    output:
        encoders_prototypes=branch(bool(run.image_encoders), then=ENCODERS_PROTOTYPES),
        labels=FUSED_LABELS,
        report=FUSION_REPORT,
        prototypes="results/{dataset}/classifiers/image_prototypes.safetensors",
        votes=VOTES,
    log:
        "results/{dataset}/logs/fuse_labels.log",
    benchmark:
        "results/{dataset}/benchmarks/fuse_labels.jsonl"
    priority: FIRST
    threads: threads_of()
    resources:
        mem_mb=memory(16_000, per_million=16_000),
        runtime=minutes(20, images_per_second=200),
    params:
        code=code_of("latteclip.labels.fuse_labels"),
        labellers=as_json(dataset_setting(jobs.labellers)),
        files=inputs_as_json(*FUSED_LABEL_FILES),
        image_encoders=optional_inputs("image_encoders"),
        encoders_prototypes=branch(
            bool(run.image_encoders),
            then=f"--encoders-prototypes {ENCODERS_PROTOTYPES}",
        ),
    shell:
        "latteclip fuse-labels --files {params.files:q} --labellers {params.labellers:q}"
        " {params.image_encoders} {params.encoders_prototypes} --output {output.labels}"
        " --report {output.report} --prototypes {output.prototypes} --votes {output.votes} --log {log}"
