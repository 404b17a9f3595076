"""The console in a headless Chromium: what a person sees there and does."""

import importlib.util
import json
import os
import pathlib

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from node import wait_for

# The script that PyPI's axe-playwright-python carries; found without importing that, which would want Playwright.
AXE = (pathlib.Path(importlib.util.find_spec("axe_playwright_python").submodule_search_locations[0]) / "axe.min.js").read_text()

# What an answer shows, paragraph by paragraph as its source has it.
SAID = "(node => node.children.length ? [...node.children].map(block => block.textContent).join('\\n\\n') : node.textContent)"


def start_browser():
    options = webdriver.ChromeOptions()
    # Debian's browser and driver, by path: nothing is looked for or downloaded.
    options.binary_location = "/usr/bin/chromium"
    for argument in ["--headless=new", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,860"]:
        options.add_argument(argument)
    if os.getuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(30)
    return driver


def replaced_is_missing(find):
    """Looks again for an element that was replaced since it was found: lists are rebuilt when they change."""
    def look():
        try:
            return find()
        except StaleElementReferenceException:
            return None
    return look


class Console:
    """The page, by what stands on it."""

    def __init__(self, driver, url):
        self.driver = driver
        self.url = url

    def open(self, agent="", raw=False, view="", expect=("live", "new")):
        view = "raw" if raw else view
        # Another document first: a change of the hash alone would not load the page again.
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/#{agent}{'?view=' + view if view else ''}")
        if agent:
            self.wait_link(*expect)
        return self

    # What is seen.

    def script(self, source, *arguments):
        return self.driver.execute_script(source, *arguments)

    def text(self, selector):
        """The text of the first element, as it is in the document; empty when there is none that is shown."""
        return self.script(
            "const found = [...document.querySelectorAll(arguments[0])].find(node => node.checkVisibility());"
            "return found ? found.textContent : ''", selector)

    def texts(self, selector):
        return self.script(
            "return [...document.querySelectorAll(arguments[0])].filter(node => node.checkVisibility())"
            ".map(node => node.textContent)", selector)

    def count(self, selector):
        return len(self.texts(selector))

    def find(self, selector):
        return wait_for(f"{selector} to be shown", replaced_is_missing(lambda: next(
            (node for node in self.driver.find_elements(By.CSS_SELECTOR, selector) if node.is_displayed()), None)))

    @property
    def answers(self):
        return self.script(f"return [...document.querySelectorAll('#rows .answer > .said')].filter(node => node.checkVisibility()).map({SAID})")

    @property
    def entries(self):
        """The entries that the log shows, those of folded rows included."""
        shown = self.script("return [...document.querySelectorAll('#rows > .raw')].flatMap(row => row.pieces ?? [row.json])")
        return [json.loads(entry) for entry in shown]

    def violations(self):
        """What axe finds wrong for people who use a keyboard, a screen reader or larger contrast: rule, element and what it says."""
        if not self.script("return 'axe' in window"):
            # By the driver: the page's policy runs no script but its own.
            self.script(AXE)
        found = self.driver.execute_async_script("axe.run({ resultTypes: ['violations'] }).then(arguments[0])")
        return [f"{rule['id']}: {node['html'][:160]} ({node['failureSummary'][:300]})" for rule in found["violations"] for node in rule["nodes"]]

    @property
    def state(self):
        return self.text("#status b")

    @property
    def focused(self):
        return self.script("return document.activeElement.id")

    def wait_link(self, *words):
        return wait_for(f"the connection to be {' or '.join(words)}", lambda: self.text("#link") in words)

    def wait_state(self, state):
        return wait_for(f"the state {state}", lambda: self.state == state)

    def wait_answer(self, test, what, index=-1):
        """Waits for the answer at `index` to pass `test`, and gives its text."""
        def look():
            found = self.answers[index:][:1]
            return found[0] if found and test(found[0]) else None
        return wait_for(what, look)

    def wait_receipt(self, kind, text):
        """Waits until the last entry of this kind has a receipt that begins with `text`."""
        def look():
            receipts = self.texts(f"#rows [data-type={kind}] .receipt")
            return receipts[-1] if receipts and receipts[-1].startswith(text) else None
        return wait_for(f"the receipt of {kind} to be '{text}'", look)

    # What is done.

    def click(self, selector):
        def attempt():
            node = self.find(selector)
            if not node.is_enabled():
                return False
            node.click()
            return True
        wait_for(f"{selector} to be enabled", replaced_is_missing(attempt))

    def write(self, text):
        field = self.find("#text")
        field.click()
        field.send_keys(text)

    def send(self, text):
        self.write(text + Keys.ENTER)
        wait_for("the message to be taken", lambda: self.script("return document.querySelector('#text').value") == "")

    def press(self, *keys):
        """Presses keys where the focus is; a tuple is a chord."""
        actions = ActionChains(self.driver)
        for key in keys:
            if isinstance(key, tuple):
                for part in key[:-1]:
                    actions.key_down(part)
                actions.send_keys(key[-1])
                for part in reversed(key[:-1]):
                    actions.key_up(part)
            else:
                actions.send_keys(key)
        actions.perform()

    def search(self, text):
        field = self.find("#search")
        field.clear()
        field.send_keys(text)

    # What the device is like.

    def media(self, **features):
        """Sets media features, such as prefers_color_scheme="dark"."""
        values = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": values})

    def device(self, width, height, scale=1, mobile=False):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile})
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": mobile})

    def reset_device(self):
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
        self.media(prefers_color_scheme="light")

    def colours(self, selector):
        """The colours of an element's text and of what is behind it, each as three numbers."""
        return self.script(
            """
            const node = [...document.querySelectorAll(arguments[0])].find(node => node.checkVisibility());
            const numbers = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
            let behind = node;
            while (behind && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
            return [numbers(getComputedStyle(node).color).slice(0, 3), numbers(getComputedStyle(behind).backgroundColor).slice(0, 3)];
            """, selector)


def contrast(one, other):
    """The contrast of two colours after WCAG 2: 1 to 21."""
    def luminance(colour):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    lighter, darker = sorted([luminance(one), luminance(other)], reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
