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
        settings=as_json(lambda model: run.hub_models[model].settings, "model"),
    shell:
        "latteclip download-model --settings {params.settings:q} --output {output} --log {log}"
