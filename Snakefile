# What people run, from any folder. The profile profiles/default is found beside it.
include: "workflow/Snakefile"


if not workflow.default_target and hasattr(rules, "all"):
    workflow.default_target = rules.all.rule.name  # which an include leaves open
