# Image and group descriptions of the training images.
# Answers are kept under resources/, so that no rule asks again what was answered once.


rule caption_images:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels=pseudo_labels_if_named,
        own=own_captions("images"),
        captioner_model=hub_model("captioner"),
        code=sources("latteclip.captions.caption"),
    output:
        "results/{dataset}/captions/images.parquet",
    log:
        "results/{dataset}/logs/caption_images.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_images.jsonl"
    wildcard_constraints:
        dataset=one_of(settings.unsharded()),
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("caption")
    resources:
        gpu=gpus(captioner_gpus),
        mem_mb=memory("caption_images"),
        runtime=minutes("caption_images", share_of_shard),
    params:
        captioner=captioner,
        prompt=prompt("image"),
        pseudo_labels=options("pseudo_labels"),
        # No output: Snakemake removes those before a job, and these are to outlive it.
        store="resources/{dataset}/captions/images",
        shard="",
    shell:
        "latteclip caption-images --images {input.images} {params.pseudo_labels}"
        " --prompt {params.prompt:q} --captioner {params.captioner:q} --store {params.store}"
        " {params.shard} --output {output} --threads {threads} --log {log}"


use rule caption_images as caption_images_shard with:
    output:
        temp("results/{dataset}/captions/shards/images-{shard}-of-{shards}.parquet"),
    log:
        "results/{dataset}/logs/caption_images-{shard}-of-{shards}.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_images-{shard}-of-{shards}.jsonl"
    wildcard_constraints:
        dataset=ANY_DATASET,
    params:
        shard="--shard {shard}/{shards}",


rule caption_groups:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        own=own_captions("groups"),
        captioner_model=hub_model("captioner"),
        code=sources("latteclip.captions.caption"),
    output:
        "results/{dataset}/captions/groups.parquet",
    log:
        "results/{dataset}/logs/caption_groups.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_groups.jsonl"
    wildcard_constraints:
        dataset=one_of(settings.unsharded()),
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("caption")
    resources:
        gpu=gpus(captioner_gpus),
        mem_mb=memory("caption_groups"),
        runtime=minutes("caption_groups", share_of_shard),
    params:
        captioner=captioner,
        groups=lambda w: as_json(settings.section("groups", w.dataset)),
        prompt=prompt("group"),
        store="resources/{dataset}/captions/groups",
        shard="",
    shell:
        "latteclip caption-groups --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " --prompt {params.prompt:q} --groups {params.groups:q}"
        " --captioner {params.captioner:q} --store {params.store} {params.shard}"
        " --output {output} --threads {threads} --log {log}"


use rule caption_groups as caption_groups_shard with:
    output:
        temp("results/{dataset}/captions/shards/groups-{shard}-of-{shards}.parquet"),
    log:
        "results/{dataset}/logs/caption_groups-{shard}-of-{shards}.log",
    benchmark:
        "results/{dataset}/benchmarks/caption_groups-{shard}-of-{shards}.jsonl"
    wildcard_constraints:
        dataset=ANY_DATASET,
    params:
        shard="--shard {shard}/{shards}",


rule gather_captions:
    input:
        images="results/{dataset}/images.parquet",
        shards=caption_shards,
        code=sources("latteclip.captions.gather_captions"),
    output:
        "results/{dataset}/captions/{kind}.parquet",
    log:
        "results/{dataset}/logs/gather_captions-{kind}.log",
    wildcard_constraints:
        dataset=one_of(settings.sharded()),
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("gather_captions"),
        runtime=minutes("gather_captions"),
    shell:
        "latteclip gather-captions {input.shards} --images {input.images} --output {output}"
        " --log {log}"


rule summarize_captions:
    input:
        images="results/{dataset}/images.parquet",
        captions=captions_in_use,
        code=sources("latteclip.captions.summarize_captions"),
    output:
        "results/{dataset}/captions/summary.json",
    log:
        "results/{dataset}/logs/summarize_captions.log",
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("summarize_captions"),
        runtime=minutes("summarize_captions"),
    shell:
        "latteclip summarize-captions {input.captions} --images {input.images} --output {output}"
        " --log {log}"
