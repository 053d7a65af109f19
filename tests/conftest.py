"""One Hypothesis profile, the same examples in every run and no deadlines; one headless browser."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# The tensors are tiny: a second thread costs more than it gives, and pytest-xdist may use the other core.
torch.set_num_threads(1)
# Tracing with a torch built for CUDA makes it believe in a GPU. If its first gradient comes after that, it starts threads
# for the device, and no fork of this process can take gradients any more (the commands of helpers.py are forks).
torch.ones(1, requires_grad=True).backward()

settings.register_profile(
    "lipscope",
    deadline=None,
    derandomize=True,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("lipscope")


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Modules that a test makes without a seed have the same weights in every run, in any order of the tests."""
    torch.manual_seed(0)


@pytest.fixture
def every_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are saved whenever they are offered, not only every few seconds."""
    monkeypatch.setattr("lipscope.quantities.checkpoint.INTERVAL", 0.0)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, driven by selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()
