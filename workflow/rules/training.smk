# Fine-tuning: one job a dataset, method and seed.


rule finetune:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        image_captions=captions_of("image"),
        group_captions=captions_of("group"),
        code=sources("latteclip.finetune"),
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
        gpu=GPU,
    params:
        settings=finetune_settings,
        captions=lambda w, input: " ".join(
            f"--{kind}-captions {file}"
            for kind in ("image", "group")
            for file in input[f"{kind}_captions"]
        ),
    shell:
        "latteclip finetune --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " {params.captions} --settings {params.settings:q} --seed {wildcards.seed}"
        " --model {output.model} --history {output.history}"
        " --threads {threads} --log {log}"
