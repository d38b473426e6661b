from support.captioning import dataset, recorder  # noqa: F401
from support.scoring import scored, scorer  # noqa: F401
from support.servers import decisions, server, service  # noqa: F401
