# From a source to the image index.


# No `code` among its inputs: an edit of the package must not unpack gigabytes again.
rule download_dataset:
    output:
        local(directory("resources/{dataset}/data")),
    log:
        "results/{dataset}/logs/download_dataset.log",
    wildcard_constraints:
        dataset=one_of(configuration.from_source("downloads")),
    localrule: True
    conda:
        "../../envs/latteclip.yaml"
    params:
        settings=given_json(stage_params.download_dataset, "dataset"),
    shell:
        "latteclip download-dataset --dataset {wildcards.dataset} --settings {params.settings:q}"
        " --output {output} --log {log}"


# A folder of the user's is no input: its time says nothing of the files below it. What stands for
# those is a parameter instead, and a link for its place.
rule index_images:
    input:
        made=unstored(given(stage_params.made_folder, "dataset")),
        classes=given_if(
            "results/{dataset}/classes.txt", Configuration.discovers, "dataset"
        ),
        code=sources("latteclip.data.index_images"),
    output:
        images="results/{dataset}/images.parquet",
        corrupt="results/{dataset}/corrupt.csv",
    log:
        "results/{dataset}/logs/index_images.log",
    benchmark:
        "results/{dataset}/benchmarks/index_images.jsonl"
    conda:
        "../../envs/latteclip.yaml"
    threads: threads_of("index_images")
    resources:
        mem_mb=memory("index_images"),
        runtime=minutes("index_images"),
    params:
        folder=lambda wildcards: functions.image_folder(wildcards.dataset),
        settings=given_json(Configuration.section, "dataset", name="split"),
        classes=options("classes"),
        limit=given(stage_params.limit),
        state=lambda wildcards: functions.folder_state(wildcards.dataset),  # for reruns alone
        examples=given(stage_params.example_classes, "dataset"),
    shell:
        "latteclip index-images --folder {params.folder:q} --settings {params.settings:q}"
        " --output {output.images} --corrupt {output.corrupt}"
        " {params.classes} {params.limit} --threads {threads} --log {log}"


rule find_duplicates:
    input:
        images="results/{dataset}/images.parquet",
        code=sources("latteclip.data.find_duplicates"),
    output:
        "results/{dataset}/duplicates.parquet",
    log:
        "results/{dataset}/logs/find_duplicates.log",
    benchmark:
        "results/{dataset}/benchmarks/find_duplicates.jsonl"
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("find_duplicates"),
        runtime=minutes("find_duplicates"),
    shell:
        "latteclip find-duplicates --images {input.images} --output {output} --log {log}"
