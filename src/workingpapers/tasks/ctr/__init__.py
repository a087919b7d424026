"""Task `ctr`: predict clicks from a table of impressions, with equal tuning for all.

`settings` holds the protocol, `examples` the impressions, the search and the scores; `baselines` and `papers` hold the
models, `tables` and `budgets` the embedding tables, `rankings` the rankings of columns.
"""

from workingpapers.tasks.ctr import baselines, budgets, papers, rankings, tables
from workingpapers.tasks.ctr.settings import task

__all__ = ["baselines", "budgets", "papers", "rankings", "tables", "task"]
