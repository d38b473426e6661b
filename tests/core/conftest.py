from support.permissions import open_folder  # noqa: F401
