"""Training with Lipschitz constants: penalties for the loss, layers with a certified norm, a monitor.

Penalties are differentiable in the live parameters of a module. Add one to the loss:

    penalty = lipscope.train.LocalPenalty(module, input_shape)          # of the steepest sample of a batch
    penalty = lipscope.train.EffectivePenalty(module, input_shape, level="channel")
    penalty = lipscope.train.CertifiedPenalty(module, input_shape)      # the product bound
    ...
    loss = criterion(module(x), y) + weight * penalty(x)
    loss.backward()

Each returns a constant L ≥ 0 as a tensor without dimensions (not its square, nor its logarithm), of the
module in evaluation mode. `Every(penalty, 4)` is one at a quarter of the cost.

Constraints hold at any time in evaluation mode, with a proof that includes rounding:

    lipscope.train.spectral(layer, "weight", bound=1.0)                         # ‖W‖ ≤ 1; dense
    lipscope.train.spectral(layer, "weight", bound=1.0, input_shape=(3, 32, 32))    # a convolution at that size
    lipscope.train.constrain(module, input_shape, bound=10.0)                   # L ≤ 10 for the whole
    ... train as ever ...
    lipscope.train.bake(module)                                                 # plain weights again

`project` brings a trained network within a bound once, as the command `lipscope constrain` does.

A monitor follows the bracket, Lip(x) and L_eff while weights change, within a share of the time:

    monitor = lipscope.train.Monitor(module, data, logs=[lipscope.train.CsvLog("training.csv")])
    ... a training step ...
    monitor.step(x)
"""

from .constraints import bake, constrain, spectral
from .logs import CsvLog, TensorBoardLog, read_log
from .monitor import Monitor
from .penalties import CertifiedPenalty, EffectivePenalty, Every, LocalPenalty, Penalty
from .projection import project

__all__ = [
    "CertifiedPenalty",
    "CsvLog",
    "EffectivePenalty",
    "Every",
    "LocalPenalty",
    "Monitor",
    "Penalty",
    "TensorBoardLog",
    "bake",
    "constrain",
    "project",
    "read_log",
    "spectral",
]
