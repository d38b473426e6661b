# Accuracy of every run on the test split, the choice of a model without it, and the table over all
# runs.


rule evaluate:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        model="results/{dataset}/{method}/seed{seed}/model",
        history="results/{dataset}/{method}/seed{seed}/history.parquet",
        left_out=given_if(LEFT_OUT, Configuration.is_average, "method"),
        code=sources("latteclip.evaluate.evaluate"),
    output:
        predictions="results/{dataset}/{method}/seed{seed}/predictions.parquet",
        metrics="results/{dataset}/{method}/seed{seed}/metrics.json",
        train_predictions="results/{dataset}/{method}/seed{seed}/train_predictions.parquet",
    log:
        "results/{dataset}/{method}/seed{seed}/logs/evaluate.log",
    benchmark:
        "results/{dataset}/{method}/seed{seed}/benchmarks/evaluate.jsonl"
    wildcard_constraints:
        method=methods_with(lambda objective: objective.trains or objective.averages),
    priority: EARLY
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("evaluate")
    resources:
        gpu=gpus(),
        mem_mb=memory("evaluate"),
        runtime=minutes("evaluate"),
    params:
        settings=given_json(stage_params.evaluate, "dataset", "method", "seed"),
        left_out=options("left_out"),
    shell:
        "latteclip evaluate --dataset {wildcards.dataset} --method {wildcards.method}"
        " --seed {wildcards.seed} --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " --model {input.model} --history {input.history} {params.left_out}"
        " --settings {params.settings:q}"
        " --predictions {output.predictions} --metrics {output.metrics}"
        " --train-predictions {output.train_predictions}"
        " --threads {threads} --log {log}"


rule evaluate_classifier:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        classifier=given(stage_params.classifier_of_method, "dataset", "method"),
        votes=given_if(
            "results/{dataset}/votes.parquet",
            Configuration.reads_fused_labels,
            "method",
            "dataset",
        ),
        image_encoders=given(stage_params.image_features, "dataset", "method"),
        code=sources("latteclip.evaluate.evaluate_classifier"),
    output:
        predictions="results/{dataset}/{method}/seed{seed}/predictions.parquet",
        metrics="results/{dataset}/{method}/seed{seed}/metrics.json",
        train_predictions="results/{dataset}/{method}/seed{seed}/train_predictions.parquet",
    log:
        "results/{dataset}/{method}/seed{seed}/logs/evaluate_classifier.log",
    benchmark:
        "results/{dataset}/{method}/seed{seed}/benchmarks/evaluate_classifier.jsonl"
    wildcard_constraints:
        method=methods_with(lambda objective: objective.classifier),
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("evaluate_classifier"),
        runtime=minutes("evaluate_classifier"),
    params:
        settings=given_json(stage_params.evaluate_classifier, "dataset", "method"),
        votes=options("votes"),
        image_encoders=options("image_encoders"),
    shell:
        "latteclip evaluate-classifier --dataset {wildcards.dataset} --method {wildcards.method}"
        " --seed {wildcards.seed} --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " --classifier {input.classifier} {params.votes} {params.image_encoders} --settings {params.settings:q}"
        " --predictions {output.predictions} --metrics {output.metrics}"
        " --train-predictions {output.train_predictions} --log {log}"


rule score_audit:
    input:
        images="results/{dataset}/images.parquet",
        # The order of the images, and the answers about them.
        answers=unstored(given(stage_params.answers, "dataset")),
        metrics=given_each("metrics", stage_params.audited_runs, "dataset"),
        predictions=given_each("predictions", stage_params.audited_runs, "dataset"),
        train_predictions=given_each(
            "train_predictions", stage_params.audited_runs, "dataset"
        ),
        code=sources("latteclip.audit.score"),
    output:
        f"results/{{dataset}}/audit{SUFFIX}.json",
    log:
        "results/{dataset}/logs/score_audit.log",
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("score_audit"),
        runtime=minutes("score_audit"),
    params:
        runs=as_found(given_json(stage_params.audited_runs, "dataset")),
    shell:
        "latteclip score-audit --dataset {wildcards.dataset} --images {input.images}"
        " --plan {input.answers[0]}"
        " --answers {input.answers[1]} --runs {params.runs:q} --output {output} --log {log}"


rule select_model:
    input:
        metrics=given_each("metrics", stage_params.candidates, "dataset"),
        train_predictions=given_each(
            "train_predictions", stage_params.candidates, "dataset"
        ),
        models=given_each("model", stage_params.candidates, "dataset"),
        votes=given_if(
            "results/{dataset}/votes.parquet",
            Configuration.can_be_judged,
            "dataset",
        ),
        audit=given(stage_params.audit_if_any, "dataset"),
        code=sources("latteclip.evaluate.select_model"),
    output:
        selection=f"results/{{dataset}}/selection{SUFFIX}.json",
        model=directory(f"results/{{dataset}}/model{SUFFIX}"),
    log:
        "results/{dataset}/logs/select_model.log",
    benchmark:
        "results/{dataset}/benchmarks/select_model.jsonl"
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("select_model"),
        runtime=minutes("select_model"),
    params:
        candidates=as_found(given_json(stage_params.candidates, "dataset")),
        judges=options("votes", "audit"),
    shell:
        "latteclip select-model --dataset {wildcards.dataset} --candidates {params.candidates:q}"
        " {params.judges} --output {output.selection} --model {output.model} --log {log}"


rule summarize:
    input:
        metrics=[
            f"results/{each}/{method}/seed{seed}/metrics.json"
            for each in configuration.datasets
            for method, seed in configuration.runs(each)
        ],
        selections=[
            stage_params.selection_if_any(configuration, d)
            for d in configuration.datasets
        ],
        audits=[
            stage_params.audit_if_any(configuration, d) for d in configuration.datasets
        ],
        fusion_reports=[
            stage_params.taught_labels(configuration, d)
            for d in configuration.datasets
        ],
        voters=[
            stage_params.labeller_files(configuration, d)
            for d in configuration.datasets
        ],
        voter_labels=[
            stage_params.voter_labels(configuration, d) for d in configuration.datasets
        ],
        code=sources("latteclip.report.summarize"),
    output:
        csv=report(
            f"results/{configuration.table['name']}{configuration.limit_suffix}.csv",
            caption="../report/summary.rst",
            category="Accuracy",
            labels={"what": "table of accuracies"},
        ),
        markdown=f"results/{configuration.table['name']}{configuration.limit_suffix}.md",
    log:
        "results/logs/summarize.log",
    localrule: True
    conda:
        "../../envs/latteclip.yaml"
    params:
        baseline=configuration.table["baseline"],
        others=stage_params.others(configuration),
        fusion_reports=options("fusion_reports"),
        voter_labels=options("voter_labels"),
    shell:
        "latteclip summarize {input.metrics} --baseline {params.baseline} {params.others}"
        " --selections {input.selections} --audits {input.audits} --csv {output.csv} --markdown {output.markdown}"
        " {params.fusion_reports} {params.voter_labels} --log {log}"
