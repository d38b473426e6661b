from support.captioning import dataset, recorder  # noqa: F401
