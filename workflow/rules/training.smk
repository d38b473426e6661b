# Fine-tuning: one job per dataset, method and seed.


rule finetune:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        image_captions=captions_of("image"),
        group_captions=captions_of("group"),
        caption_labels=caption_labels_if_used,
        clip_model=hub_model("clip"),
        code=sources("latteclip.train.finetune"),
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
        gpu=gpus(processes_of),
        mem_mb=memory("finetune"),
        runtime=minutes("finetune", epochs),
    params:
        command=finetune_command,
        settings=finetune_settings,
        captions=options("image_captions", "group_captions", "caption_labels"),
        # No output: Snakemake removes those of a job that failed, and this is to go on from.
        checkpoint="results/{dataset}/{method}/seed{seed}/checkpoint",
    shell:
        "{params.command} finetune --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " {params.captions} --settings {params.settings:q} --seed {wildcards.seed}"
        " --model {output.model} --history {output.history} --checkpoint {params.checkpoint}"
        " --threads {threads} --log {log}"
