# Image and group descriptions of the training images.


rule caption_images:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels=pseudo_labels_if_named,
        code=sources("latteclip.captions"),
    output:
        "results/{dataset}/captions/images.parquet",
    log:
        "results/{dataset}/logs/caption_images.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_images.jsonl"
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("caption")
    resources:
        gpu=GPU,
    params:
        captioner=captioner,
        prompt=prompt("image"),
        pseudo_labels=lambda w, input: " ".join(
            f"--pseudo-labels {f}" for f in input.pseudo_labels
        ),
    shell:
        "latteclip caption-images --images {input.images} {params.pseudo_labels}"
        " --prompt {params.prompt:q} --captioner {params.captioner:q}"
        " --output {output} --threads {threads} --log {log}"


rule caption_groups:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        code=sources("latteclip.captions"),
    output:
        "results/{dataset}/captions/groups.parquet",
    log:
        "results/{dataset}/logs/caption_groups.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_groups.jsonl"
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("caption")
    resources:
        gpu=GPU,
    params:
        captioner=captioner,
        groups=lambda w: as_json(settings.section("groups", w.dataset)),
        prompt=prompt("group"),
    shell:
        "latteclip caption-groups --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " --prompt {params.prompt:q} --groups {params.groups:q}"
        " --captioner {params.captioner:q} --output {output} --threads {threads} --log {log}"
