"""Private training in numpy: per-example clipping, sampling, integer sums.

Order of use at a site, each step: `integer_sum` (Poisson sample, clip each example, round each microbatch once),
then the noise of `privacy.mechanisms`, then the masks; at whoever takes the server's step: the sum's values,
`server_mean`, `Algorithm.step`.
"""

from cloister.learning.private.base import CLIP_RANGE, PrivateModel, PrivateSettings, check_clip

__all__ = ["CLIP_RANGE", "PrivateModel", "PrivateSettings", "check_clip"]
