"""Browsers for the tests of pages: Debian's Chromium by Playwright, its Firefox by Mozilla's Marionette; and axe-core.

All are found, none is downloaded; what is missing skips the tests that need it, by name.
"""

import base64
import io
import shutil
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FIREFOX = ("firefox-esr", "firefox")
GRAVE = ("serious", "critical")
PREFERENCES = {"marionette.port": 0, "browser.shell.checkDefaultBrowser": False, "app.update.enabled": False}


def found(names):
    return next(filter(None, map(shutil.which, names)), None)


# -- Chromium ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if found(CHROMIUM) is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file in a window of its own; at the end, that there were no errors and no requests but for that file."""
    contexts, wrong, requests = [], [], []

    def goto(path, width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield goto
    for context in contexts:
        context.close()
    assert wrong == []
    assert all(url.startswith(("file://", "data:")) for url in requests)
    assert sum(url.startswith("file://") for url in requests) == len(contexts)


# -- Firefox ----------------------------------------------------------------------------------------------------------


class Firefox:
    """A Firefox, told what to do by Marionette."""

    def __init__(self, client, keys):
        self._client, self._keys = client, keys

    def open(self, path, width, height, dark=False):
        """Open a file in a window of that size inside, narrower than a desktop would let it be if need be."""
        script = """
            const [width, height, scheme] = arguments;
            Services.prefs.setIntPref("layout.css.prefers-color-scheme.content-override", scheme);
            const { style } = gBrowser.selectedBrowser;
            [style.flex, style.width, style.height] = ["none", `${width}px`, `${height}px`];
        """
        self._client.set_window_rect(width=max(width, 500) + 20, height=height + 200)
        with self._client.using_context("chrome"):
            self._client.execute_script(script, script_args=[width, height, 0 if dark else 1])
        self._client.navigate(path.as_uri())

    def do(self, script, *arguments):
        """What a script gives."""
        return self._client.execute_script(script, script_args=list(arguments))

    def wait(self, condition, *arguments):
        """Wait until an expression holds."""
        for _ in range(600):
            if self.do(f"return {condition}", *arguments):
                return
            time.sleep(0.05)
        raise AssertionError(f"this never held: {condition}")

    def press(self, *keys):
        """Press keys, by names such as TAB, or letters."""
        for key in keys:
            pressed = self._client.actions.sequence("key", "keyboard")
            pressed.send_keys(key if len(key) == 1 else getattr(self._keys, key)).perform()

    def axe(self, axe):
        """What axe-core finds."""
        done = "const done = arguments[arguments.length - 1];"
        run = "axe.run(document).then(found => done(found.violations))"
        return self._client.execute_async_script(f"{done}\n{axe}\n{run}", script_timeout=60_000)

    def screenshot(self):
        """What the window shows, as PNG."""
        return base64.b64decode(self._client.screenshot(full=False))


@pytest.fixture(scope="module")
def firefox(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what it imports
        marionette = pytest.importorskip("marionette_driver.marionette")
        keys = pytest.importorskip("marionette_driver.keys")
    if found(FIREFOX) is None:
        pytest.skip("there is no Firefox: apt-get install firefox-esr")
    profile = tmp_path_factory.mktemp("firefox")
    lines = [f'user_pref("{name}", {str(value).lower()});\n' for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("".join(lines))
    command = [found(FIREFOX), "--headless", "--marionette", "--remote-allow-system-access", "--no-remote"]
    with subprocess.Popen(
        [*command, "--profile", str(profile)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            client = marionette.Marionette(host="127.0.0.1", port=_port(profile / "MarionetteActivePort", process))
            client.start_session()
            yield Firefox(client, keys.Keys)
            client.delete_session()
        finally:
            process.terminate()


def _port(file: Path, process):
    while process.poll() is None:
        if file.exists() and file.read_text():
            return int(file.read_text())
        time.sleep(0.05)
    raise AssertionError(f"Firefox did not start: exit code {process.returncode}")


# -- what they show ---------------------------------------------------------------------------------------------------


def decoded(url):
    """The pixels (H, W, 4) of a data URL."""
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as image:
        return np.asarray(image.convert("RGBA")).astype(int)


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core: npm's, where `npm install axe-core` was run, else the one in axe-playwright-python."""
    installed = Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"
    if installed.is_file():
        return installed.read_text(encoding="utf-8")
    package = pytest.importorskip("axe_playwright_python")
    return Path(package.__file__).with_name("axe.min.js").read_text(encoding="utf-8")


def grave(violations):
    """Findings that are serious or critical, with the elements that they are about."""
    return [
        (each["id"], each["impact"], [node["html"][:200] for node in each["nodes"]])
        for each in violations
        if each["impact"] in GRAVE
    ]
