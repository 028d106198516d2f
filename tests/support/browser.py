"""A headless Chromium from packages, which records its requests and the messages of its console."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any, Self

from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.support.features import require

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Browser"]


class Browser:
    """A context manager; `open` a file, then ask."""

    def __init__(self) -> None:
        program, driver = shutil.which("chromium"), shutil.which("chromedriver")
        require(program and driver, "chromium and chromedriver")
        options = webdriver.ChromeOptions()
        options.binary_location = str(program)
        arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium does not start as root with one
        for argument in arguments:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self._driver = webdriver.Chrome(options=options, service=Service(str(driver)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exit: object) -> None:
        self._driver.quit()

    def open(
        self, path: Path, *, width: int = 1280, scheme: str = "light", media: str = "screen"
    ) -> None:
        """Show a file, as on a screen or on paper of this width (in CSS pixels)."""
        command = self._driver.execute_cdp_cmd
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command("Emulation.setEmulatedMedia", {"features": features, "media": media})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        command("Emulation.setDeviceMetricsOverride", size)
        self.requests(), self.console()  # those of the last page
        self._driver.get(path.as_uri())

    def requests(self) -> list[str]:
        """The addresses of all requests since `open`, or since the last call."""
        messages = [json.loads(one["message"])["message"] for one in self._log("performance")]
        return [
            one["params"]["request"]["url"]
            for one in messages
            if one["method"] == "Network.requestWillBeSent"
        ]

    def console(self) -> list[str]:
        """The messages of the console since `open`, or since the last call."""
        return [one["message"] for one in self._log("browser")]

    def _log(self, name: str) -> list[dict[str, Any]]:
        return self._driver.get_log(name)  # type: ignore[no-any-return]

    def ask(self, script: str) -> Any:  # noqa: ANN401 of JavaScript
        """The value of an expression of JavaScript."""
        return self._driver.execute_script(f"return {script}")

    def text(self) -> str:
        """The text of the page as it is shown."""
        return self._driver.find_element(By.TAG_NAME, "body").text

    def open_details(self) -> None:
        """Open every <details>."""
        self._driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = 1)")

    def cells(self, section: str) -> list[list[str]]:
        """The cells of the first table of a section, by its id, without the heading."""
        rows = f"document.querySelectorAll('#{section} table')[0].tBodies[0].rows"
        return self.ask(f"[...{rows}].map(r => [...r.cells].map(c => c.textContent))")  # type: ignore[no-any-return]

    def tab_through(self) -> list[str]:
        """Press Tab from the top to the end: the style of the outline of each focused element."""
        outlines: list[str] = []
        focused = "document.activeElement"
        while True:
            ActionChains(self._driver).send_keys(Keys.TAB).perform()
            if self.ask(f"{focused} === document.body || {focused}.dataset.reached == '1'"):
                return outlines
            outlines.append(self.ask(f"getComputedStyle({focused}).outlineStyle"))
            self._driver.execute_script(f"{focused}.dataset.reached = 1")

    def faults(self) -> list[str]:
        """The findings of axe."""
        found = Axe().run(self._driver)
        return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found["violations"]]
