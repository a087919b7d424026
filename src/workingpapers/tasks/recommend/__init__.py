"""Task `recommend`: which item will a user take next, out of the whole catalogue.

`settings` holds the protocol, `logs` the data by name, `problems` what is drawn and held back, `examples` what entries
see and how their lists are judged; `baselines`, `papers` and `language` hold the entries, `texts` the models that read.
"""

from workingpapers.tasks.recommend import baselines, language, papers
from workingpapers.tasks.recommend.settings import task

__all__ = ["baselines", "language", "papers", "task"]
