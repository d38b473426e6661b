from support.commands import answers, index  # noqa: F401
from support.scored_textures import requests, textures  # noqa: F401
