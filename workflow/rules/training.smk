# Models that are fine-tuned, by one job per dataset, method and seed, and models between the
# pretrained one and these, which classify in the same job.

TRAINED = one_of(name for name, objective in run.objectives.items() if objective.module)
AVERAGED = one_of(
    name for name, objective in run.objectives.items() if objective.averages
)
# What a training learns from.
TRAINING_FILES = {
    "images": "results/{dataset}/images.parquet",
    "pseudo_labels": PSEUDO_LABELS,
    "image_captions": branch(
        method_setting("reads_image_captions"), then=IMAGE_CAPTIONS
    ),
    "group_captions": branch(
        method_setting("reads_group_captions"), then=GROUP_CAPTIONS
    ),
    "fused_labels": branch(method_setting("reads_fused_labels"), then=FUSED_LABELS),
    "fusion_report": branch(method_setting("reads_fused_labels"), then=FUSION_REPORT),
    "adapted": branch(
        method_setting(lambda method: method.pseudo_labels == "zero_shot_adapted"),
        then=ADAPTED,
    ),
}


rule find_learning_rate:
    input:
        **TRAINING_FILES,
        models=dataset_setting(notes_on_models),
    output:
        "results/{dataset}/{method}/learning_rate.json",
    log:
        "results/{dataset}/{method}/logs/find_learning_rate.log",
    benchmark:
        "results/{dataset}/{method}/benchmarks/find_learning_rate.jsonl"
    wildcard_constraints:
        method=TRAINED,
    priority: EARLY
    threads: threads_of(on_gpus=True)
    resources:
        **gpus(),
        mem_mb=memory(16_000, per_million=8_000, loads_images=True),
        runtime=minutes(20, images_per_second=200, passes=method_setting("max_epochs")),
    params:
        code=method_setting(lambda method: training_code(method, "find_learning_rate")),
        model_files=dataset_setting(digests_of_models),
        files=inputs_as_json(*TRAINING_FILES),
        settings=as_json(method_setting(jobs.training)),
        # No output, like the store of answers: the trainings go on with it.
        decoded=shared_folder("decoded"),
    shell:
        "latteclip find-learning-rate --files {params.files:q} --settings {params.settings:q}"
        " --output {output} --decoded {params.decoded} --threads {threads} --log {log}"


rule finetune:
    input:
        **TRAINING_FILES,
        learning_rate=branch(
            method_setting("searches_learning_rate"),
            then="results/{dataset}/{method}/learning_rate.json",
        ),
        models=dataset_setting(notes_on_models),
    output:
        model=directory("results/{dataset}/{method}/seed{seed}/model"),
        history="results/{dataset}/{method}/seed{seed}/history.parquet",
    log:
        "results/{dataset}/{method}/seed{seed}/logs/finetune.log",
    benchmark:
        "results/{dataset}/{method}/seed{seed}/benchmarks/finetune.jsonl"
    wildcard_constraints:
        method=TRAINED,
    priority: EARLY
    threads: threads_of(on_gpus=True)
    resources:
        **gpus(),
        mem_mb=memory(16_000, per_million=8_000, loads_images=True),
        runtime=minutes(20, images_per_second=200, passes=method_setting("max_epochs")),
    params:
        code=method_setting(lambda method: training_code(method, "finetune")),
        model_files=dataset_setting(digests_of_models),
        files=inputs_as_json(*TRAINING_FILES, "learning_rate"),
        settings=as_json(method_setting(jobs.training)),
        fold=as_json(fold),
        minutes=dataset_setting("keys.compute.checkpoint_minutes"),
        # No output: Snakemake removes those of a job that failed, and this is to go on from.
        checkpoint=machine.place("results/{dataset}/{method}/seed{seed}/checkpoint"),
        decoded=shared_folder("decoded"),
    shell:
        "latteclip finetune --files {params.files:q} --settings {params.settings:q}"
        " --fold {params.fold:q} --seed {wildcards.seed}"
        " --model {output.model} --history {output.history} --checkpoint {params.checkpoint}"
        " --checkpoint-minutes {params.minutes}"
        " --decoded {params.decoded} --threads {threads} --log {log}"


rule average_weights:
    input:
        images="results/{dataset}/images.parquet",
        pretrained=CLIP,
        fused_labels=FUSED_LABELS,
        fusion_report=FUSION_REPORT,
        models=collect("{run}/model", run=method_setting("averaged_folders")),
        histories=collect(
            "{run}/history.parquet", run=method_setting("averaged_folders")
        ),
    output:
        model=directory("results/{dataset}/{method}/seed{seed}/model"),
        history="results/{dataset}/{method}/seed{seed}/history.parquet",
        predictions="results/{dataset}/{method}/seed{seed}/predictions.parquet",
        metrics="results/{dataset}/{method}/seed{seed}/metrics.json",
        train_predictions="results/{dataset}/{method}/seed{seed}/train_predictions.parquet",
    log:
        "results/{dataset}/{method}/seed{seed}/logs/average_weights.log",
    benchmark:
        "results/{dataset}/{method}/seed{seed}/benchmarks/average_weights.jsonl"
    wildcard_constraints:
        method=AVERAGED,
    priority: EARLY
    threads: threads_of()
    resources:
        **gpus(),
        mem_mb=memory(14_000, per_million=4_000, loads_images=True),
        runtime=minutes(15, images_per_second=100),
    params:
        code=code_of("latteclip.evaluate.average_weights"),
        trainings=as_json(method_setting(jobs.averaged)),
        mixing=method_setting("keys.mixing"),
        precision=dataset_setting("keys.clip.precision"),
    shell:
        "latteclip average-weights --dataset {wildcards.dataset} --method {wildcards.method}"
        " --seed {wildcards.seed} --images {input.images} --pretrained {input.pretrained}"
        " --fused-labels {input.fused_labels} --fusion-report {input.fusion_report}"
        " --trainings {params.trainings:q}"
        " --mixing {params.mixing} --precision {params.precision}"
        " --model {output.model} --history {output.history}"
        " --predictions {output.predictions} --metrics {output.metrics}"
        " --train-predictions {output.train_predictions} --threads {threads} --log {log}"
