from support.scored_textures import requests, textures  # noqa: F401
