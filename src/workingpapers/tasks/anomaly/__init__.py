"""Task `anomaly`: tell what differs from normal images, having seen those alone, by a frozen backbone's features.

`settings` holds the protocol, `examples` the data and the scores, `views` what is read from an image; `baselines` and
`gaussian` hold the entries that judge an image by pooled features, `patches` those that judge every place of it.
"""

from workingpapers.tasks.anomaly import baselines, gaussian, patches
from workingpapers.tasks.anomaly.settings import task

__all__ = ["baselines", "gaussian", "patches", "task"]
