"""Task `prefill`: the first pass over a batch of prompts of unequal length, and what the padding costs.

`settings` holds the protocol, `prompts` the prompts and how a pass is judged, `entries` the ways to batch them.
"""

from workingpapers.tasks.prefill import entries
from workingpapers.tasks.prefill.settings import task

__all__ = ["entries", "task"]
