from support.downloads import folder, host, waits  # noqa: F401
from support.permissions import open_folder  # noqa: F401
