"""Where the steps of a long quantity run: here, one after the other, or on the workers of a cluster.

A quantity over a data set is a task mapped over chunks of the data, its results reduced in the
order of the chunks. So every engine gives the same sums, and a checkpoint is a number of chunks done.
"""

from .engine import SERIAL, Engine
from .named import ENGINES, engine_named
from .ray import RayEngine

__all__ = ["ENGINES", "SERIAL", "Engine", "RayEngine", "engine_named"]
