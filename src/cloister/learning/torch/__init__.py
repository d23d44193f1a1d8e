"""Modules of torch under differential privacy; needs the extra `torch`.

To use: `load_factory` runs a Python file that somebody else wrote, if that is allowed, and gives the function
that makes its module; `TorchPrivate(factory, ...)` makes and tests the module and is a `PrivateModel` of
`learning.private` from then on. `plain_sgd` trains it without privacy, for baselines.
"""

from cloister.learning.torch.plain import plain_sgd
from cloister.learning.torch.private import TorchPrivate
from cloister.learning.torch.start import build_module
from cloister.learning.torch.threads import use_threads
from cloister.learning.torch.usercode import load_factory, load_module

__all__ = ["TorchPrivate", "build_module", "load_factory", "load_module", "plain_sgd", "use_threads"]
