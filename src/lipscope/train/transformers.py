"""Callbacks for the Trainer of Hugging Face transformers (the extra `transformers`).

    trainer = Trainer(model, args, callbacks=[PenaltyCallback(LocalPenalty(model.head, (768,)), weight=1e-3)])
    trainer = Trainer(model, args, callbacks=[ConstraintCallback(model.head, (768,), bound=10.0)])

A penalised part is a module that takes one tensor and returns one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from ..errors import LipscopeError
from ..graph import from_torch
from ..quantities import analytical
from .constraints import constrain
from .inputs import LastInput
from .penalties import Every, Penalty

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise LipscopeError("these callbacks need transformers: pip install 'lipscope[transformers]'") from error


class PenaltyCallback(TrainerCallback):
    """Adds the gradient of weight·penalty before each step of the optimiser, and logs the penalty.

    The penalty is taken at the inputs that the penalised module last got. Its gradient comes after the
    Trainer's clipping of gradients. With several processes or devices, or with fp16, whose gradients are
    scaled, override the Trainer's `compute_loss` instead and add the penalty there.

    Args:
        penalty: made from a part of the model.
        weight: its factor beside the loss.
        name: of the logged value.

    Raises:
        LipscopeError: while training, in those cases, or if the module is not called in a step.
    """

    def __init__(self, penalty: Penalty | Every, weight: float, name: str = "lipschitz") -> None:
        self.penalty, self.weight, self.name = penalty, weight, name
        self._inputs = LastInput(penalty.live.module)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watches the inputs of the module from here on."""
        if args.fp16 or args.world_size > 1 or args.n_gpu > 1:
            raise LipscopeError(
                "PenaltyCallback trains on one device, without fp16; override the Trainer's compute_loss and add "
                "weight * penalty(x) there"
            )
        self._inputs.open()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Adds the penalty's gradient."""
        value = self.penalty(self._inputs.take())
        if value.requires_grad:
            (self.weight * value).backward()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Adds the penalty to what is logged."""
        _logged(state, kwargs, self.name, float(self.penalty.last))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the module alone."""
        self._inputs.close()


class ConstraintCallback(TrainerCallback):
    """Constrains a part of the model, from the moment it is made, and logs its certified bound with evaluations.

    The Trainer evaluates in evaluation mode, so what it evaluates keeps the bound. After training the weights
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
        self.module, self.input_shape, self.name = module, tuple(input_shape), name
        # The optimiser, made before training begins, keeps the same parameters.
        self.budgets = constrain(module, self.input_shape, bound, split=split)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Adds the certified bound to what is logged of an evaluation."""
        if any(key.startswith("eval_") for key in kwargs.get("logs") or {}):
            bound = analytical(from_torch(self.module, self.input_shape)).value
            _logged(state, kwargs, self.name, bound)


def _logged(state: TrainerState, kwargs: dict[str, Any], name: str, value: float) -> None:
    """Add a value to the logs that other callbacks get, and to the history."""
    kwargs["logs"][name] = value
    if state.log_history:
        state.log_history[-1][name] = value
