"""One Hypothesis profile: the same examples in every run, and no deadlines."""

import pytest
import torch
from hypothesis import HealthCheck, settings

# The tensors are tiny: a second thread costs more than it gives, and pytest-xdist may use the other core.
torch.set_num_threads(1)

settings.register_profile(
    "lipscope",
    deadline=None,
    derandomize=True,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("lipscope")


@pytest.fixture
def every_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are saved whenever they are offered, not only every few seconds."""
    monkeypatch.setattr("lipscope.quantities.checkpoint.INTERVAL", 0.0)
