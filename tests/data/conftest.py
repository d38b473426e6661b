from support.downloads import folder, host, waits  # noqa: F401
