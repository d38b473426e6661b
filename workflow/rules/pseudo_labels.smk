# Zero-shot pseudo-labels and image features of all splits, and what belongs to no class.


rule pseudo_label_images:
    input:
        images="results/{dataset}/images.parquet",
        clip_model=given(stage_params.hub_model, "dataset", section="clip"),
        code=sources("latteclip.labels.pseudo_label_images"),
    output:
        labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
    log:
        "results/{dataset}/logs/pseudo_label_images.log",
    benchmark:
        "results/{dataset}/benchmarks/pseudo_label_images.jsonl"
    priority: FIRST
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("pseudo_label_images")
    resources:
        gpu=gpus(),
        mem_mb=memory("pseudo_label_images"),
        runtime=minutes("pseudo_label_images"),
    params:
        clip_files=given(stage_params.local_clip, "dataset"),
        settings=given_json(stage_params.pseudo_label_images, "dataset"),
    shell:
        "latteclip pseudo-label-images --images {input.images} --settings {params.settings:q}"
        " --output {output.labels} --class-embeddings {output.class_embeddings}"
        " --threads {threads} --log {log}"


rule score_unknown:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        class_scores=given_if(
            "results/{dataset}/class_scores.parquet",
            Configuration.scores_classes,
            "dataset",
        ),
        answers=unstored(given(stage_params.teaching_answers, "dataset")),
        code=sources("latteclip.labels.score_unknown"),
    output:
        scores="results/{dataset}/unknown.parquet",
        detector="results/{dataset}/classifiers/unknown.safetensors",
    log:
        "results/{dataset}/logs/score_unknown.log",
    benchmark:
        "results/{dataset}/benchmarks/score_unknown.jsonl"
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("score_unknown"),
        runtime=minutes("score_unknown"),
    params:
        settings=given_json(Configuration.section, "dataset", name="unknown"),
        scores=options("class_scores", "answers"),
    shell:
        "latteclip score-unknown --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " --class-embeddings {input.class_embeddings} {params.scores} --settings {params.settings:q}"
        " --output {output.scores} --detector {output.detector} --log {log}"
