from support.captioning import captioned, dataset, recorder  # noqa: F401
from support.chat_server import server  # noqa: F401
from support.decision_server import decisions  # noqa: F401
from support.scoring import scored, scorer  # noqa: F401
