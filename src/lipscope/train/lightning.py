"""Callbacks for PyTorch Lightning (the extra `lightning`).

trainer = Trainer(callbacks=[PenaltyCallback(LocalPenalty(model.net, (784,)), weight=1e-3)])
trainer = Trainer(callbacks=[ConstraintCallback(model.net, (784,), bound=10.0)])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from ..errors import LipscopeError
from ..graph import from_torch
from ..quantities import analytical
from .constraints import constrain
from .inputs import LastInput
from .penalties import Every, Penalty

try:
    from pytorch_lightning import Callback, LightningModule, Trainer
except ImportError as error:
    raise LipscopeError(
        "these callbacks need PyTorch Lightning: pip install 'lipscope[lightning]'"
    ) from error


class PenaltyCallback(Callback):
    """Adds weight·penalty to the loss that `training_step` returns, and logs the penalty.

    The penalty is taken at the inputs that the penalised module gets in the step. It becomes a part of the
    loss, so precision, accumulation and strategy are Lightning's. For automatic optimisation.

    Args:
        penalty: made from a part of the Lightning module, or all of it.
        weight: its factor in the loss.
        name: of the logged value.

    Raises:
        LipscopeError: while training, if the module is not called in a step.
    """

    def __init__(self, penalty: Penalty | Every, weight: float, name: str = "lipschitz") -> None:
        self.penalty, self.weight, self.name = penalty, weight, name
        self._inputs = LastInput(penalty.live.module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step with the penalty takes the place of the module's own."""
        self._inputs.open()
        step: Callable[..., Any] = pl_module.training_step

        def with_penalty(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            if result is None:  # a batch that is left out
                return None
            added = self.weight * self.penalty(self._inputs.take())
            pl_module.log(self.name, self.penalty.last)
            if isinstance(result, Tensor):
                return result + added
            return {**result, "loss": result["loss"] + added}

        vars(pl_module)["training_step"] = with_penalty

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module's own step is back."""
        self._restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The module's own step is back."""
        self._restore(pl_module)

    def _restore(self, pl_module: LightningModule) -> None:
        pl_module.__dict__.pop("training_step", None)
        self._inputs.close()


class ConstraintCallback(Callback):
    """Constrains a module before training, and logs its certified bound after every validation.

    Lightning validates in evaluation mode, so what it validates keeps the bound. After training the weights
    stay parametrized; `bake` makes them plain.

    Args:
        module, input_shape, bound, split: see `constrain`.
        name: of the logged value.
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        bound: float,
        split: Literal["even", "proportional"] = "even",
        name: str = "lipschitz_certified",
    ) -> None:
        self.module, self.input_shape, self.bound, self.split = module, tuple(input_shape), bound, split
        self.name, self._done = name, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Constrains the module, once; before optimisers are made."""
        if stage == "fit" and not self._done:
            constrain(self.module, self.input_shape, self.bound, split=self.split)
            self._done = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the certified bound."""
        pl_module.log(self.name, analytical(from_torch(self.module, self.input_shape)).value)
