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
        **on_gpus(),
        **ENCODES,
    params:
        code=code_of("latteclip.evaluate.evaluate"),
        fold=as_json(jobs.fold, "dataset", "seed"),
        precision=of(lambda each: each.keys.clip.precision),
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
        classifier=of(lambda method: method.classifier, "method"),
        clip=CLIP,
        votes=branch(of(READS_FUSED, "method"), then=VOTES),
        image_encoders=of(
            lambda method: jobs.image_features(method.dataset, method.encoders),
            "method",
        ),
        encoders=of(
            lambda method: [
                f"{method.dataset.results}/image_encoders/{encoder}"
                for encoder in method.encoders
            ],
            "method",
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
        method=one_of(name for name, each in run.objectives.items() if each.classifier),
    resources:
        mem_mb=memory(8_000, per_million=8_000),
        runtime=minutes(15, images_per_second=100),
    params:
        code=code_of("latteclip.evaluate.evaluate_classifier"),
        inputs=options("votes", "image_encoders", "encoders"),
        flags=of(
            lambda method: [f"--flags {flag}" for flag in jobs.flags(method)], "method"
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
        answers=users(of(audited)),
        metrics=each("metrics", jobs.runs),
        predictions=each("predictions", jobs.runs),
        train_predictions=each("train_predictions", jobs.runs),
    output:
        f"results/{{dataset}}/audit{SUFFIX}.json",
    log:
        "results/{dataset}/logs/score_audit.log",
    resources:
        **LIGHT,
    params:
        code=code_of("latteclip.audit.score"),
        runs=as_json(jobs.runs),
    shell:
        "latteclip score-audit --dataset {wildcards.dataset} --images {input.images}"
        " --plan {input.answers[0]} --runs {params.runs:q} --output {output} --log {log}"


rule select_model:
    input:
        metrics=each("metrics", jobs.candidates),
        train_predictions=each("train_predictions", jobs.candidates),
        models=each("model", jobs.candidates),
        votes=branch(of(lambda each: each.can_be_judged), then=VOTES),
        audit=of(audit),
    output:
        selection=f"results/{{dataset}}/selection{SUFFIX}.json",
        model=directory(f"results/{{dataset}}/model{SUFFIX}"),
    log:
        "results/{dataset}/logs/select_model.log",
    benchmark:
        "results/{dataset}/benchmarks/select_model.jsonl"
    resources:
        **LIGHT,
    params:
        code=code_of("latteclip.evaluate.select_model"),
        candidates=as_json(jobs.candidates),
        judges=options("votes", "audit"),
    shell:
        "latteclip select-model --dataset {wildcards.dataset} --candidates {params.candidates:q}"
        " {params.judges} --output {output.selection} --model {output.model} --log {log}"
