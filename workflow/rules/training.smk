# Models: fine-tuned by one job per dataset, method and seed, or the pretrained one with a classifier
# that was made without training.


rule assemble_model:
    input:
        classifier=given(stage_params.classifier_of_method, "dataset", "method"),
        clip_model=given(stage_params.hub_model, "dataset", section="clip"),
        image_encoders=given(stage_params.models_to_assemble, "method"),
        code=sources("latteclip.train.assemble_model"),
    output:
        directory("results/{dataset}/{method}/seed{seed}/model"),
    log:
        "results/{dataset}/{method}/seed{seed}/logs/assemble_model.log",
    benchmark:
        "results/{dataset}/{method}/seed{seed}/benchmarks/assemble_model.jsonl"
    wildcard_constraints:
        method=methods_with(lambda objective: objective.classifier),
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("assemble_model"),
        runtime=minutes("assemble_model"),
    params:
        clip_files=given(stage_params.local_clip, "dataset"),
        encoder_files=given(stage_params.local_encoders, "method"),
        settings=given_json(stage_params.assemble_model, "dataset", "method"),
    shell:
        "latteclip assemble-model --classifier {input.classifier} --settings {params.settings:q}"
        " --output {output} --log {log}"


TRAINED = methods_with(lambda objective: objective.trains)
# What a training learns from.
LABELS = {
    "images": "results/{dataset}/images.parquet",
    "pseudo_labels": "results/{dataset}/pseudo_labels.parquet",
    "image_captions": given(
        stage_params.training_captions, "dataset", "method", kind="image"
    ),
    "group_captions": given(
        stage_params.training_captions, "dataset", "method", kind="group"
    ),
    "fused_labels": given_if(
        "results/{dataset}/fused_labels.parquet",
        Configuration.reads_fused_labels,
        "method",
        "dataset",
    ),
    "fusion_report": given_if(
        "results/{dataset}/fused_labels.json",
        Configuration.reads_fused_labels,
        "method",
        "dataset",
    ),
    "adapted": given_if(
        "results/{dataset}/classifiers/adapted.safetensors",
        Configuration.reads_adapted,
        "method",
        "dataset",
    ),
}
TRAINING_FILES = (*LABELS, "image_prototypes")


rule find_learning_rate:
    input:
        **LABELS,
        image_prototypes=given(
            stage_params.image_prototypes_of_method, "dataset", "method"
        ),
        clip_model=given(stage_params.hub_model, "dataset", section="clip"),
        code=sources("latteclip.train.find_learning_rate"),
        objective_code=unstored(given(stage_code.objective_code, "method")),
    output:
        "results/{dataset}/{method}/learning_rate.json",
    log:
        "results/{dataset}/{method}/logs/find_learning_rate.log",
    benchmark:
        "results/{dataset}/{method}/benchmarks/find_learning_rate.jsonl"
    wildcard_constraints:
        method=TRAINED,
    priority: EARLY
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("finetune")
    resources:
        gpu=gpus(),
        mem_mb=memory("find_learning_rate"),
        runtime=minutes(
            "find_learning_rate", given(job_resources.epochs, "dataset", "method")
        ),
    params:
        clip_files=given(stage_params.local_clip, "dataset"),
        files=file_names(*TRAINING_FILES),
        settings=given_json(stage_params.find_learning_rate, "dataset", "method"),
        # No output, like the store of answers: the trainings go on with it.
        decoded=given(stage_params.decoded_images, "dataset"),
    shell:
        "latteclip find-learning-rate --files {params.files:q} --settings {params.settings:q}"
        " --output {output} --decoded {params.decoded} --threads {threads} --log {log}"


rule finetune:
    input:
        **LABELS,
        image_prototypes=given(
            stage_params.image_prototypes_of_method, "dataset", "method"
        ),
        learning_rate=given_if(
            "results/{dataset}/{method}/learning_rate.json",
            Configuration.finds_rate,
            "method",
            "dataset",
        ),
        clip_model=given(stage_params.hub_model, "dataset", section="clip"),
        code=sources("latteclip.train.finetune"),
        objective_code=unstored(given(stage_code.objective_code, "method")),
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
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("finetune")
    resources:
        gpu=gpus(),
        mem_mb=memory("finetune"),
        runtime=minutes("finetune", given(job_resources.epochs, "dataset", "method")),
    params:
        clip_files=given(stage_params.local_clip, "dataset"),
        files=file_names(*TRAINING_FILES, "learning_rate"),
        settings=given_json(stage_params.finetune, "dataset", "method", "seed"),
        # No output: Snakemake removes those of a job that failed, and this is to go on from.
        checkpoint="results/{dataset}/{method}/seed{seed}/checkpoint",
        decoded=given(stage_params.decoded_images, "dataset"),
    shell:
        "latteclip finetune --files {params.files:q} --settings {params.settings:q}"
        " --seed {wildcards.seed}"
        " --model {output.model} --history {output.history} --checkpoint {params.checkpoint}"
        " --decoded {params.decoded} --threads {threads} --log {log}"


rule average_weights:
    input:
        images="results/{dataset}/images.parquet",
        models=given_each("model", stage_params.averaged, "dataset", "method"),
        histories=given_each("history", stage_params.averaged, "dataset", "method"),
        code=sources("latteclip.train.average_weights"),
    output:
        model=directory("results/{dataset}/{method}/seed{seed}/model"),
        history="results/{dataset}/{method}/seed{seed}/history.parquet",
        left_out=LEFT_OUT,
    log:
        "results/{dataset}/{method}/seed{seed}/logs/average_weights.log",
    benchmark:
        "results/{dataset}/{method}/seed{seed}/benchmarks/average_weights.jsonl"
    wildcard_constraints:
        method=methods_with(lambda objective: objective.averages),
    priority: EARLY
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("evaluate")
    resources:
        gpu=gpus(),
        mem_mb=memory("average_weights"),
        runtime=minutes("average_weights"),
    params:
        trainings=as_found(given_json(stage_params.averaged, "dataset", "method")),
        settings=given_json(stage_params.encoding, "dataset"),
    shell:
        "latteclip average-weights --images {input.images} --trainings {params.trainings:q}"
        " --settings {params.settings:q} --model {output.model} --history {output.history}"
        " --left-out {output.left_out} --threads {threads} --log {log}"
