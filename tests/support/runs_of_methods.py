"""Metrics of runs, as they are read for a table."""


def run(dataset, method, seed, acc1, marks=()):
    return {
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "marks": list(marks),
        "images": 10,
        "acc1": acc1,
        "acc5": None if acc1 is None else acc1 + 0.2,
        "mean_per_class_recall": None if acc1 is None else acc1 - 0.1,
        "per_class": [],
    }


RUNS = [
    run("dtd", "zero_shot", 0, 0.4),
    run("dtd", "latteclip", 0, 0.5),
    run("dtd", "latteclip", 1, 0.7),
    run("dtd", "latteclip", 2, 0.6),
    run("aaa", "latteclip", 0, 0.3),
]


MARKED = [
    *RUNS,
    run("dtd", "flyp_supervised", 0, 0.9, ["supervised"]),
    run("dtd", "latteclip_fused", 0, 0.8, ["ours"]),
    run("dtd", "latteclip_fused", 1, 0.6, ["collapsed", "ours"]),
]
# On several datasets, one of them none of the paper's.
SEVERAL = [
    run("dtd", "zero_shot", 0, 0.4),
    run("dtd", "latteclip", 0, 0.5),
    run("dtd", "latteclip", 1, 0.7),
    run("mine", "zero_shot", 0, 0.1),
    run("mine", "latteclip", 0, 0.9),
    run("eurosat", "zero_shot", 0, 0.2),
    run("eurosat", "latteclip", 0, 0.25),
    run("sun397", "latteclip", 0, 0.3),
]
