from support.captioning import captioned, dataset, recorder  # noqa: F401
