from support.commands import answers, index, requests, textures  # noqa: F401
