# Zero-shot pseudo-labels and image features of all splits, and what belongs to no class.


rule pseudo_label_images:
    input:
        images="results/{dataset}/images.parquet",
        models=notes(),
    output:
        labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
    log:
        "results/{dataset}/logs/pseudo_label_images.log",
    benchmark:
        "results/{dataset}/benchmarks/pseudo_label_images.jsonl"
    priority: FIRST
    threads: threads_of()
    resources:
        **on_gpus(),
        mem_mb=memory(6_000, per_million=8_000, loads_images=True),
        runtime=minutes(15, images_per_second=100),
    params:
        code=code_of("latteclip.labels.pseudo_label_images"),
        model_files=local_files(),
        settings=as_json(jobs.pseudo_label_images),
    shell:
        "latteclip pseudo-label-images --images {input.images} --settings {params.settings:q}"
        " --output {output.labels} --class-embeddings {output.class_embeddings}"
        " --threads {threads} --log {log}"


rule score_unknown:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        class_scores=when(
            "results/{dataset}/class_scores.parquet",
            lambda dataset: dataset.keys.scores.kind,
        ),
        answers=users(of(jobs.teaching_answers)),
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
        settings=as_json(lambda dataset: dataset.keys.unknown),
        scores=options("class_scores", "answers"),
    shell:
        "latteclip score-unknown --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " --class-embeddings {input.class_embeddings} {params.scores} --settings {params.settings:q}"
        " --output {output.scores} --detector {output.detector} --log {log}"
