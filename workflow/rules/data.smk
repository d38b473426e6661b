# From a source to the image index.


# No code among the parameters: an edit of the package must not unpack gigabytes again. Nor must a
# new title or mirror: Snakemake compares no parameters that are functions of the output.
rule download_dataset:
    output:
        local(directory("resources/{dataset}/data")),
    log:
        "results/{dataset}/logs/download_dataset.log",
    wildcard_constraints:
        dataset=one_of(run.downloadable),
    localrule: True
    params:
        settings=download_settings,
        files=as_json(dataset_setting(jobs.downloads)),
    shell:
        "latteclip download-dataset --dataset {wildcards.dataset} --settings {params.settings:q}"
        " --output {output} --log {log}"


# A folder of the user's is no input: its time says nothing of the files below it. What stands for
# those is a digest among the parameters, and a link for its place.
rule index_images:
    input:
        made=user_files(dataset_setting(jobs.downloaded_folder)),
        classes=branch(
            dataset_setting("discovers"), then="results/{dataset}/classes.txt"
        ),
        discovery=branch(
            dataset_setting(proposes_classes),
            then="results/{dataset}/discovery.json",
            otherwise=dataset_setting(images_left_out),
        ),
    output:
        images="results/{dataset}/images.parquet",
        corrupt="results/{dataset}/corrupt.csv",
    log:
        "results/{dataset}/logs/index_images.log",
    benchmark:
        "results/{dataset}/benchmarks/index_images.jsonl"
    threads: threads_of()
    resources:
        mem_mb=memory(4_000, per_million=4_000),
        runtime=minutes(15, images_per_second=100),
    params:
        code=code_of("latteclip.data.index_images"),
        folder=dataset_setting(machine.image_folder),
        state=dataset_setting(machine.folder_state),
        settings=as_json(dataset_setting(jobs.index_images)),
        classes=optional_inputs("classes", "discovery"),
        limit="" if run.keys.limit is None else f"--limit {run.keys.limit}",
    shell:
        "latteclip index-images --folder {params.folder:q} --settings {params.settings:q}"
        " --output {output.images} --corrupt {output.corrupt}"
        " {params.classes} {params.limit} --threads {threads} --log {log}"


rule find_duplicates:
    input:
        images="results/{dataset}/images.parquet",
    output:
        "results/{dataset}/duplicates.parquet",
    log:
        "results/{dataset}/logs/find_duplicates.log",
    benchmark:
        "results/{dataset}/benchmarks/find_duplicates.jsonl"
    priority: FIRST
    resources:
        mem_mb=memory(4_000, per_million=4_000),
        runtime=minutes(10, images_per_second=500),
    params:
        code=code_of("latteclip.data.find_duplicates"),
    shell:
        "latteclip find-duplicates --images {input.images} --output {output} --log {log}"


# Models of the Hugging Face hub, fetched into its cache where there is internet: the stages that
# load them need none. No code among the parameters: an edit must not fetch gigabytes again.
rule download_model:
    output:
        jobs.MODEL_NOTE,
    log:
        "results/logs/download_model-{model}.log",
    wildcard_constraints:
        model=one_of(run.hub_models),
    localrule: True
    params:
        settings=as_json(lambda wildcards: run.hub_models[wildcards.model].settings),
    shell:
        "latteclip download-model --settings {params.settings:q} --output {output} --log {log}"
