"""A real Chromium, driven by selenium, that loads nothing but what a test opens."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

PACKAGES = {"chromium": "chromium", "chromedriver": "chromium-driver"}
PATH = f"{os.environ.get('PATH', '')}:/usr/bin"


def missing() -> str | None:
    """Why no page can be opened here; None when it can."""
    lacking = {package for tool, package in PACKAGES.items() if not shutil.which(tool, path=PATH)}
    if lacking:
        return f"no browser here: apt-get install {' '.join(sorted(lacking))}"
    return None


class Browser:
    """Opens pages from files and tells what they did."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, page: Path, width: int = 1200, dark: bool = False) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.messages(), self.requests()  # those of the page before
        self.driver.get(page.as_uri())

    def js(self, code: str) -> Any:
        return self.driver.execute_script(code)

    def wait(self, what: str, ready: Callable[[], bool], seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
            time.sleep(0.05)

    def messages(self) -> list[str]:
        """Everything on the console since the last call; of which: what the policy refused."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address asked for since the last call, but those that hold what they name."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [address for address in found if not address.startswith(("data:", "blob:"))]


@contextmanager
def running_browser() -> Iterator[Browser]:
    options = Options()
    options.binary_location = str(shutil.which("chromium", path=PATH))
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)  # the sandbox does not start as root, as in a container
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(str(shutil.which("chromedriver", path=PATH)))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
