# Fine-tuning: one job per dataset, method and seed.


rule finetune:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        image_captions=given(rule_inputs.captions_of_method, kind="image"),
        group_captions=given(rule_inputs.captions_of_method, kind="group"),
        caption_labels=given(rule_inputs.caption_labels_of_method),
        clip_model=given(rule_inputs.hub_model, section="clip"),
        code=sources("latteclip.train.finetune"),
        objective_code=given(rule_inputs.objective_code),
    output:
        model=directory("results/{dataset}/{method}/seed{seed}/model"),
        history="results/{dataset}/{method}/seed{seed}/history.parquet",
    log:
        "results/{dataset}/{method}/seed{seed}/logs/finetune.log",
    benchmark:
        "results/{dataset}/{method}/seed{seed}/benchmarks/finetune.jsonl"
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("finetune")
    resources:
        gpu=gpus(demands.processes),
        mem_mb=memory("finetune"),
        runtime=minutes("finetune", demands.epochs),
    params:
        command=given(rule_settings.finetune_command),
        settings=given_json(rule_settings.finetune),
        captions=options("image_captions", "group_captions", "caption_labels"),
        # No output: Snakemake removes those of a job that failed, and this is to go on from.
        checkpoint="results/{dataset}/{method}/seed{seed}/checkpoint",
    shell:
        "{params.command} finetune --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " {params.captions} --settings {params.settings:q} --seed {wildcards.seed}"
        " --model {output.model} --history {output.history} --checkpoint {params.checkpoint}"
        " --threads {threads} --log {log}"
