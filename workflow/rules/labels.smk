# Labels of the training images, and classifiers, by zero-shot scores, image features and captions.


rule calibrate_zero_shot:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        code=sources("latteclip.labels.calibrate_zero_shot"),
    output:
        calibrated="results/{dataset}/classifiers/calibrated.safetensors",
        prototypes="results/{dataset}/classifiers/image_prototypes_by_zero_shot.safetensors",
    log:
        "results/{dataset}/logs/calibrate_zero_shot.log",
    benchmark:
        "results/{dataset}/benchmarks/calibrate_zero_shot.jsonl"
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("calibrate_zero_shot"),
        runtime=minutes("calibrate_zero_shot"),
    shell:
        "latteclip calibrate-zero-shot --images {input.images}"
        " --pseudo-labels {input.pseudo_labels} --class-embeddings {input.class_embeddings}"
        " --output {output.calibrated} --prototypes {output.prototypes} --log {log}"


rule fuse_labels:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        image_captions=given_if(Configuration.captions_vote, CAPTIONS, kind="image"),
        class_scores=given_if(Configuration.scores_classes, CLASS_SCORES),
        answers=given_unstored(stage_params.teaching_answers),
        clip_model=given(stage_params.hub_model, section="clip"),
        code=sources("latteclip.labels.fuse_labels"),
    output:
        labels="results/{dataset}/fused_labels.parquet",
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
        settings=given_json(stage_params.fuse_labels),
        votes=options("image_captions", "class_scores", "answers"),
    shell:
        "latteclip fuse-labels --images {input.images}"
        " --pseudo-labels {input.pseudo_labels} --class-embeddings {input.class_embeddings}"
        " {params.votes} --settings {params.settings:q} --output {output.labels}"
        " --prototypes {output.prototypes} --votes {output.votes} --threads {threads} --log {log}"
