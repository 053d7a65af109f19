"""Training with Lipschitz constants: a monitor that follows them while the weights change.

monitor = lipscope.train.Monitor(model, data, logs=[lipscope.train.CsvLog("training.csv")])
for x, y in batches:
    ... one training step ...
    monitor.step(x)
"""

from .logs import CsvLog, TensorBoardLog, read_log
from .monitor import Monitor

__all__ = ["CsvLog", "Monitor", "TensorBoardLog", "read_log"]
