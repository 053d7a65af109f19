"""A page in headless Chromium."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def opened(browser: Any, path: Path, width: int = 1200, scheme: str = "light") -> None:
    """Load a page and wait for its charts."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())
    wanted = browser.execute_script("return document.querySelectorAll('.chart').length")
    deadline = time.monotonic() + 20
    while (
        count(browser, ".js-plotly-plot .main-svg .xaxislayer-above") < wanted and time.monotonic() < deadline
    ):
        time.sleep(0.05)


def count(browser: Any, selector: str) -> int:
    found: int = browser.execute_script(
        "return [...document.querySelectorAll('figure')].filter(c => c.querySelector(arguments[0])).length",
        selector,
    )
    return found


def requests(browser: Any) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
