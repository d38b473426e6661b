from support.commands import answers, index  # noqa: F401
