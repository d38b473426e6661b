# Models that are fine-tuned, by one job per dataset, method and seed, and models between the
# pretrained one and these, which classify in the same job.

TRAINED = one_of(name for name, each in run.objectives.items() if each.module)
AVERAGED = one_of(name for name, each in run.objectives.items() if each.averages)
# Passes over the images, at most.
EPOCHS = of(
    lambda each: (
        30 if each.keys.finetune.epochs == "auto" else each.keys.finetune.epochs
    ),
    "method",
)
# What a training learns from.
TRAINING_FILES = {
    "images": "results/{dataset}/images.parquet",
    "pseudo_labels": PSEUDO_LABELS,
    "image_captions": branch(
        of(lambda each: "image" in each.caption_kinds, "method"), then=IMAGE_CAPTIONS
    ),
    "group_captions": branch(
        of(lambda each: "group" in each.caption_kinds, "method"), then=GROUP_CAPTIONS
    ),
    "fused_labels": branch(of(READS_FUSED, "method"), then=FUSED_LABELS),
    "fusion_report": branch(of(READS_FUSED, "method"), then=FUSION_REPORT),
    "adapted": branch(
        of(lambda each: each.pseudo_labels == "zero_shot_adapted", "method"),
        then=ADAPTED,
    ),
}


rule find_learning_rate:
    input:
        **TRAINING_FILES,
        models=notes(),
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
        **on_gpus(),
        mem_mb=memory(16_000, per_million=8_000, loads_images=True),
        runtime=minutes(20, images_per_second=200, passes=EPOCHS),
    params:
        code=of(lambda each: training_code(each, "find_learning_rate"), "method"),
        model_files=local_files(),
        files=file_names(*TRAINING_FILES),
        settings=as_json(jobs.training, "method"),
        # No output, like the store of answers: the trainings go on with it.
        decoded=of(lambda each: jobs.shared(each, "decoded")),
    shell:
        "latteclip find-learning-rate --files {params.files:q} --settings {params.settings:q}"
        " --output {output} --decoded {params.decoded} --threads {threads} --log {log}"


rule finetune:
    input:
        **TRAINING_FILES,
        learning_rate=branch(
            of(lambda each: each.keys.finetune.lr == "auto", "method"),
            then="results/{dataset}/{method}/learning_rate.json",
        ),
        models=notes(),
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
        **on_gpus(),
        mem_mb=memory(16_000, per_million=8_000, loads_images=True),
        runtime=minutes(20, images_per_second=200, passes=EPOCHS),
    params:
        code=of(lambda each: training_code(each, "finetune"), "method"),
        model_files=local_files(),
        files=file_names(*TRAINING_FILES, "learning_rate"),
        settings=as_json(jobs.training, "method"),
        fold=as_json(jobs.fold, "dataset", "seed"),
        minutes=of(lambda each: each.keys.compute.checkpoint_minutes),
        # No output: Snakemake removes those of a job that failed, and this is to go on from.
        checkpoint=machine.place("results/{dataset}/{method}/seed{seed}/checkpoint"),
        decoded=of(lambda each: jobs.shared(each, "decoded")),
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
        models=each("model", jobs.averaged, "method"),
        histories=each("history", jobs.averaged, "method"),
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
        **on_gpus(),
        mem_mb=memory(14_000, per_million=4_000, loads_images=True),
        runtime=minutes(15, images_per_second=100),
    params:
        code=code_of("latteclip.evaluate.average_weights"),
        trainings=as_json(jobs.averaged, "method"),
        mixing=of(lambda each: each.keys.mixing, "method"),
        precision=of(lambda each: each.keys.clip.precision),
    shell:
        "latteclip average-weights --dataset {wildcards.dataset} --method {wildcards.method}"
        " --seed {wildcards.seed} --images {input.images} --pretrained {input.pretrained}"
        " --fused-labels {input.fused_labels} --fusion-report {input.fusion_report}"
        " --trainings {params.trainings:q}"
        " --mixing {params.mixing} --precision {params.precision}"
        " --model {output.model} --history {output.history}"
        " --predictions {output.predictions} --metrics {output.metrics}"
        " --train-predictions {output.train_predictions} --threads {threads} --log {log}"
