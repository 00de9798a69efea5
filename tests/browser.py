"""A headless Chromium for tests, driven over the W3C WebDriver protocol by its own driver: no package is needed."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--hide-scrollbars",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c"}


def found() -> tuple[str, str] | None:
    """The paths of Chromium and of its driver, where both are installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """`with Browser() as page:` then `page.open(url)`, `page.run("return …")`, `page.press(…)`."""

    def __enter__(self) -> "Browser":
        browser, driver = found()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.driver = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            port = next(int(m[1]) for line in self.driver.stdout if (m := re.search(r"successfully on port (\d+)", line)))
            self.address = f"http://127.0.0.1:{port}/session"
            options = {"binary": browser, "args": [*FLAGS, f"--user-data-dir={self.folder.name}"]}
            capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            self.address += "/" + self._send("POST", "", capabilities={"alwaysMatch": capabilities})["sessionId"]
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._send("DELETE", "")
        self._end()

    def _end(self) -> None:
        self.driver.terminate()
        self.driver.wait()
        self.driver.stdout.close()
        self.folder.cleanup()

    def _send(self, method: str, path: str, **content: object):
        body = json.dumps(content).encode() if method == "POST" else None
        request = urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, file: Path, mark: str = "") -> None:
        """Loads a file anew."""
        self._send("POST", "/url", url="about:blank")
        self._send("POST", "/url", url=file.resolve().as_uri() + mark)

    def run(self, script: str, *arguments: object):
        """What a script returns."""
        return self._send("POST", "/execute/sync", script=script, args=list(arguments))

    def click(self, selector: str) -> None:
        """A click with the mouse on what a selector finds first; scrolls there before."""
        element = self._send("POST", "/element", using="css selector", value=selector)[ELEMENT]
        self._send("POST", f"/element/{element}/click")

    def point(self, x: float, y: float, click: bool = False) -> None:
        """Moves the mouse to a place in the window, and clicks there."""
        actions = [{"type": "pointerMove", "x": round(x), "y": round(y), "origin": "viewport"}]
        actions += [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp") if click]
        self._send("POST", "/actions", actions=[{"type": "pointer", "id": "mouse", "actions": actions}])

    def press(self, *keys: str) -> None:
        """Keys, one after the other, to whatever has the focus."""
        codes = [KEYS.get(key, key) for key in keys]
        actions = [{"type": kind, "value": code} for code in codes for kind in ("keyDown", "keyUp")]
        self._send("POST", "/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, and whether dark colours are preferred."""
        self._devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path) -> None:
        """A PNG of the whole page."""
        found = self._devtools("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def errors(self) -> list[str]:
        """What the console has said since the last look, warnings and errors."""
        return [line["message"] for line in self._send("POST", "/se/log", type="browser") if line["level"] in ("WARNING", "SEVERE")]

    def _devtools(self, name: str, **options: object):
        return self._send("POST", "/goog/cdp/execute", cmd=name, params=options)
