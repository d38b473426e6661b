# Models of the Hugging Face hub, fetched into its cache where there is internet: the stages that
# load them need none. No code among the parameters: an edit must not fetch gigabytes again.


rule download_clip:
    output:
        jobs.MODEL_NOTE,
    log:
        "results/logs/download_clip-{model}.log",
    wildcard_constraints:
        model=one_of(run.hub_models("clip")),
    localrule: True
    params:
        settings=as_json(lambda model: run.hub_models("clip")[model], "model"),
    shell:
        "latteclip download-clip --settings {params.settings:q} --output {output} --log {log}"


rule download_image_encoder:
    output:
        jobs.MODEL_NOTE,
    log:
        "results/logs/download_image_encoder-{model}.log",
    wildcard_constraints:
        model=one_of(run.hub_encoders),
    localrule: True
    params:
        encoder=of(lambda model: run.hub_encoders[model]["model"], "model"),
    shell:
        "latteclip download-image-encoder --encoder {params.encoder:q} --output {output} --log {log}"


rule download_captioner:
    output:
        jobs.MODEL_NOTE,
    log:
        "results/logs/download_captioner-{model}.log",
    wildcard_constraints:
        model=one_of(run.hub_models("captioner")),
    localrule: True
    params:
        settings=as_json(lambda model: run.hub_models("captioner")[model], "model"),
    shell:
        "latteclip download-captioner --settings {params.settings:q} --output {output} --log {log}"
