"""leakypar: a spiking layer that sees a whole sequence at once.

`LeakyParallel` stands in for `snntorch.LeakyParallel`; `leaky_parallel` is the same layer as a function. Both run the
fused kernels where they were built (`build_info()` tells), and the layer runs through `nn.RNN` everywhere.
"""

from . import flops as flops  # it registers the formulas
from . import init, parametrizations, reference, surrogate, tuning, tuning_file
from .build_info import build_info
from .convert import SpikesAndMembrane, convert
from .functional import leaky_parallel
from .launch_plan import DeviceFacts, Method, Plan, Scan, Tiles, plan
from .module import LeakyParallel
from .rates import FiringRates, LayerRates, firing_rates
from .tuning import Tuned, tune, tune_layer
from .version import __version__

autotune = tuning.switched_on_by_environment()
"""Whether sizes that were not measured are at their first call, as `leakypar.tuning` describes."""

tuning_file.load()

__all__ = [
    "DeviceFacts",
    "FiringRates",
    "LayerRates",
    "LeakyParallel",
    "Method",
    "Plan",
    "Scan",
    "SpikesAndMembrane",
    "Tiles",
    "Tuned",
    "__version__",
    "autotune",
    "build_info",
    "convert",
    "firing_rates",
    "init",
    "leaky_parallel",
    "parametrizations",
    "plan",
    "reference",
    "surrogate",
    "tune",
    "tune_layer",
]
