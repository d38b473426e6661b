from support.captioning import dataset, recorder, scored, scorer  # noqa: F401
from support.servers import decisions, server, service  # noqa: F401
