"""Callbacks in real runs of PyTorch Lightning and of Hugging Face's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lipscope
from lipscope.errors import LipscopeError
from lipscope.train import CertifiedPenalty, Every, LocalPenalty, bake

SHAPE = (6,)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


def task() -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    return x, (x.sum(1) > 0).long()


def constant(net: nn.Module) -> float:
    return lipscope.analytical(lipscope.from_torch(net, SHAPE)).value


def lightning_run(folder: Path, net: nn.Module, callbacks: list[Any]) -> dict[str, float]:
    lightning = pytest.importorskip("pytorch_lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> dict[str, Tensor]:
            x, y = batch
            return {"loss": nn.functional.cross_entropy(self.net(x), y)}

        def validation_step(self, batch: Any, index: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.5)

    trainer = lightning.Trainer(
        max_epochs=3, callbacks=callbacks, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(*task()), batch_size=16)
    module = Classifier()
    trainer.fit(module, loader, loader)
    assert "training_step" not in vars(module)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_lightning_penalty(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from lipscope.train.lightning import PenaltyCallback

    plain, penalised = network(), network()
    lightning_run(tmp_path, plain, [])
    penalty = LocalPenalty(penalised, SHAPE)
    metrics = lightning_run(tmp_path, penalised, [PenaltyCallback(penalty, 0.3)])
    assert metrics["lipschitz"] == pytest.approx(float(penalty.last))
    assert constant(penalised) < 0.7 * constant(plain)
    assert not penalised._forward_pre_hooks


def test_lightning_constraint(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from lipscope.train.lightning import ConstraintCallback

    net = network()
    metrics = lightning_run(tmp_path, net, [ConstraintCallback(net, SHAPE, 0.5)])
    assert 0.48 < metrics["lipschitz_certified"] <= 0.5
    assert 0.48 < constant(bake(net)) <= 0.5


def test_a_module_that_is_not_called_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from lipscope.train.lightning import PenaltyCallback

    net = network()
    with pytest.raises(LipscopeError, match="Sequential was not called"):
        lightning_run(tmp_path, net, [PenaltyCallback(LocalPenalty(network(), SHAPE), 0.3)])


def transformers_run(
    folder: Path, net: nn.Module, callbacks: list[Any], **options: Any
) -> list[dict[str, float]]:
    transformers = pytest.importorskip("transformers")

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    x, y = task()
    data = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=3, per_device_train_batch_size=8, learning_rate=0.5, optim="sgd",
        lr_scheduler_type="constant", eval_strategy="epoch", save_strategy="no", logging_strategy="epoch", report_to=[],
        disable_tqdm=True, use_cpu=True, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(
        Classifier(), arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks
    )
    trainer.train()
    history: list[dict[str, float]] = trainer.state.log_history
    return history


@pytest.mark.parametrize("accumulated", [1, 2])
def test_transformers_penalty(tmp_path: Path, accumulated: int) -> None:
    pytest.importorskip("transformers")
    from lipscope.train.transformers import PenaltyCallback

    plain, penalised = network(), network()
    transformers_run(tmp_path, plain, [], gradient_accumulation_steps=accumulated)
    penalty = Every(CertifiedPenalty(penalised, SHAPE), 2)
    history = transformers_run(
        tmp_path, penalised, [PenaltyCallback(penalty, 0.3)], gradient_accumulation_steps=accumulated
    )
    assert any(entry.get("lipschitz") == pytest.approx(float(penalty.last)) for entry in history)
    assert constant(penalised) < 0.7 * constant(plain)
    assert not penalised._forward_pre_hooks


def test_transformers_constraint(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from lipscope.train.transformers import ConstraintCallback

    net = network()
    callback = ConstraintCallback(net, SHAPE, 0.5)
    assert len(callback.budgets) == 2
    logged = [
        e["lipschitz_certified"] for e in transformers_run(tmp_path, net, [callback]) if "eval_loss" in e
    ]
    assert len(logged) == 3
    assert all(value <= 0.5 for value in logged)
    assert 0.48 < constant(bake(net)) <= 0.5
