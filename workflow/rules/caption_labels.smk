# Labels of the training images by their captions and the zero-shot scores together.


rule label_by_captions:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        class_embeddings="results/{dataset}/class_embeddings.safetensors",
        image_captions="results/{dataset}/captions/images.parquet",
        group_captions="results/{dataset}/captions/groups.parquet",
        clip_model=given(rule_inputs.hub_model, section="clip"),
        code=sources("latteclip.labels.label_by_captions"),
    output:
        "results/{dataset}/caption_labels.parquet",
    log:
        "results/{dataset}/logs/label_by_captions.log",
    benchmark:
        "results/{dataset}/benchmarks/label_by_captions.jsonl"
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("pseudo_label_images")
    resources:
        gpu=gpus(),
        mem_mb=memory("label_by_captions"),
        runtime=minutes("label_by_captions"),
    params:
        settings=given_json(rule_settings.label_by_captions),
    shell:
        "latteclip label-by-captions --images {input.images}"
        " --pseudo-labels {input.pseudo_labels} --class-embeddings {input.class_embeddings}"
        " --image-captions {input.image_captions} --group-captions {input.group_captions}"
        " --settings {params.settings:q} --output {output} --threads {threads} --log {log}"
