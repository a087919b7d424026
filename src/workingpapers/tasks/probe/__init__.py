"""Task `probe`: classify with a frozen backbone's features. Which head, which features, how many labels?

`settings` holds the protocols, `examples` the data that they share, and the other modules the entries: `baselines`
and `papers` on frozen features, `unseen` for classes without examples, `embeddings` for backbones trained with
a head.
"""

from workingpapers.tasks.probe import baselines, embeddings, papers, unseen
from workingpapers.tasks.probe.settings import task

__all__ = ["baselines", "embeddings", "papers", "task", "unseen"]
