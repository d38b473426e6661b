from support.web import folder, host, waits  # noqa: F401
