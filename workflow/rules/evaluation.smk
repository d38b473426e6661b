# Accuracy of every run on the test split, models that are not trained, the choice of a model without
# the test split, and the tables over all runs.


rule evaluate:
    input:
        images="results/{dataset}/images.parquet",
        model="results/{dataset}/{method}/seed{seed}/model",
        history="results/{dataset}/{method}/seed{seed}/history.parquet",
    output:
        predictions="results/{dataset}/{method}/seed{seed}/predictions.parquet",
        metrics="results/{dataset}/{method}/seed{seed}/metrics.json",
        train_predictions="results/{dataset}/{method}/seed{seed}/train_predictions.parquet",
    log:
        "results/{dataset}/{method}/seed{seed}/logs/evaluate.log",
    benchmark:
        "results/{dataset}/{method}/seed{seed}/benchmarks/evaluate.jsonl"
    wildcard_constraints:
        method=TRAINED,
    priority: EARLY
    threads: threads_of()
    resources:
        **gpus(),
        **ENCODING_RESOURCES,
    params:
        code=code_of("latteclip.evaluate.evaluate"),
        fold=as_json(fold),
        precision=dataset_setting("keys.clip.precision"),
    shell:
        "latteclip evaluate --dataset {wildcards.dataset} --method {wildcards.method}"
        " --seed {wildcards.seed} --images {input.images} --model {input.model}"
        " --history {input.history} --fold {params.fold:q} --precision {params.precision}"
        " --predictions {output.predictions} --metrics {output.metrics}"
        " --train-predictions {output.train_predictions}"
        " --threads {threads} --log {log}"


rule evaluate_classifier:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels=PSEUDO_LABELS,
        classifier=method_setting("classifier"),
        clip=CLIP,
        votes=branch(method_setting("reads_fused_labels"), then=VOTES),
        image_encoders=branch(method_setting("encoders"), then=IMAGE_ENCODER_FEATURES),
        encoders=branch(
            method_setting("encoders"),
            then=collect(
                "results/{dataset}/image_encoders/{encoder}",
                encoder=run.image_encoders,
                allow_missing=True,
            ),
        ),
    output:
        predictions="results/{dataset}/{method}/seed{seed}/predictions.parquet",
        metrics="results/{dataset}/{method}/seed{seed}/metrics.json",
        train_predictions="results/{dataset}/{method}/seed{seed}/train_predictions.parquet",
        model=directory("results/{dataset}/{method}/seed{seed}/model"),
    log:
        "results/{dataset}/{method}/seed{seed}/logs/evaluate_classifier.log",
    benchmark:
        "results/{dataset}/{method}/seed{seed}/benchmarks/evaluate_classifier.jsonl"
    wildcard_constraints:
        method=one_of(
            name for name, objective in run.objectives.items() if objective.classifier
        ),
    resources:
        mem_mb=memory(8_000, per_million=8_000),
        runtime=minutes(15, images_per_second=100),
    params:
        code=code_of("latteclip.evaluate.evaluate_classifier"),
        inputs=optional_inputs("votes", "image_encoders", "encoders"),
        flags=method_setting(
            lambda method: [f"--flags {flag}" for flag in jobs.flags(method)]
        ),
    shell:
        "latteclip evaluate-classifier --dataset {wildcards.dataset} --method {wildcards.method}"
        " --seed {wildcards.seed} --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " --classifier {input.classifier} --clip {input.clip} {params.inputs} {params.flags}"
        " --predictions {output.predictions} --metrics {output.metrics}"
        " --train-predictions {output.train_predictions} --model {output.model} --log {log}"


rule score_audit:
    input:
        images="results/{dataset}/images.parquet",
        # The order of the images, and the answers about them.
        answers=user_files(dataset_setting(audit_answers)),
        metrics=collect("{run}/metrics.json", run=dataset_setting("run_folders")),
        predictions=collect(
            "{run}/predictions.parquet", run=dataset_setting("run_folders")
        ),
        train_predictions=collect(
            "{run}/train_predictions.parquet", run=dataset_setting("run_folders")
        ),
    output:
        f"results/{{dataset}}/audit{SUFFIX}.json",
    log:
        "results/{dataset}/logs/score_audit.log",
    resources:
        **TABLE_RESOURCES,
    params:
        code=code_of("latteclip.audit.score"),
        runs=as_json(dataset_setting(jobs.runs)),
    shell:
        "latteclip score-audit --dataset {wildcards.dataset} --images {input.images}"
        " --plan {input.answers[0]} --runs {params.runs:q} --output {output} --log {log}"


rule select_model:
    input:
        metrics=collect("{run}/metrics.json", run=dataset_setting("candidate_folders")),
        train_predictions=collect(
            "{run}/train_predictions.parquet", run=dataset_setting("candidate_folders")
        ),
        models=collect("{run}/model", run=dataset_setting("candidate_folders")),
        votes=branch(dataset_setting("can_be_judged"), then=VOTES),
        audit=dataset_setting(audit_scores),
    output:
        selection=f"results/{{dataset}}/selection{SUFFIX}.json",
        model=directory(f"results/{{dataset}}/model{SUFFIX}"),
    log:
        "results/{dataset}/logs/select_model.log",
    benchmark:
        "results/{dataset}/benchmarks/select_model.jsonl"
    resources:
        **TABLE_RESOURCES,
    params:
        code=code_of("latteclip.evaluate.select_model"),
        candidates=as_json(dataset_setting(jobs.candidates)),
        judges=optional_inputs("votes", "audit"),
    shell:
        "latteclip select-model --dataset {wildcards.dataset} --candidates {params.candidates:q}"
        " {params.judges} --output {output.selection} --model {output.model} --log {log}"
