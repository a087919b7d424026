"""Task `long-context`: read text that is long for a language model, beyond its training length or faster within it.

`settings` holds the protocol. `material` says what entries get and return, `scoring` how they are judged, `baselines`
and `papers` hold the entries that read with a finished model; `passkey` hides what is to be found. `byte_model` trains
the small model that is read beyond its training length, `finetuning` and `packing` hold the entries that train it, and
`sharded` spreads one sequence over processes.
"""

from workingpapers.tasks.long_context import baselines, finetuning, packing, papers, sharded
from workingpapers.tasks.long_context.settings import task

__all__ = ["baselines", "finetuning", "packing", "papers", "sharded", "task"]
