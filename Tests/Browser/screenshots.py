"""Takes the pictures of README.md and docs/console.md, docs/images/console*.png, from the real executable.

    .venv/bin/python Tests/Browser/screenshots.py

They look as they should with the fonts Inter and JetBrains Mono (fonts-inter, fonts-jetbrains-mono), and are made small by pngquant.
"""

import shutil
import subprocess

from console import Console, start_browser
from node import ROOT, Node, wait_for

IMAGES = ROOT / "docs" / "images"

TIDES = """## Why there are two tides a day

The Moon pulls on the near side of the Earth **more** than on the far side. Water piles up on *both*, and the Earth turns beneath:

| | spring tide | neap tide |
|---|---|---|
| Moon | new or full | half |
| range | large | small |

1. Look up the harbour in the [tide tables](https://tides.example.org/harbours).
2. Add `13 min` for the river.

```python
high = [moon.transit + hours(12.42) * n for n in range(2)]
```"""


def main():
    node = Node("steps-agent", "scripted:rate=12", options=["--idle", "1"]).start()
    driver = start_browser()
    try:
        console = Console(driver, node.url)
        driver.execute_cdp_cmd("Emulation.setLocaleOverride", {"locale": "en-GB"})
        fill(node)
        desktop(console, "light")
        console.open("publisher/notes-2.4")
        console.send("Release notes for 2.4")
        console.find(".approval[data-decision=open]")
        console.wait_answer(lambda text: len(text) > 200 and text.startswith("Hello"), "a part of the announcement")
        show_approval(console)
        take(driver, "console")
        desktop(console, "dark")
        console.write("Mention the new settings page first.")
        console.click("#steer")
        console.wait_receipt("steer", "")
        console.click(".approval .approve")
        wait_for("the decision", lambda: console.text(".approval .verdict").startswith("Approved"))
        take(driver, "console-dark")
        wait_for("the end of the turn", lambda: node.entries("publisher/notes-2.4", "turn.completed"))
        take_page(console, "console-trace-dark", "publisher/notes-2.4", "trace", ".fall")
        desktop(console, "light")
        take_page(console, "console-trace", "publisher/notes-2.4", "trace", ".fall")
        take_page(console, "console-answer", "assistant/harbour-log", "", ".prose table")
        take_page(console, "console-home", "", "", ".home .kind")
        desktop(console, "dark")
        take_page(console, "console-home-dark", "", "", ".home .kind")
        for scheme, suffix in [("light", ""), ("dark", "-dark")]:
            phone(console, scheme)
            take_page(console, f"console-phone-home{suffix}", "", "", ".home .kind")
            console.open("publisher/spring-news")
            console.find(".approval[data-decision=open]")
            show_approval(console)
            take(driver, f"console-phone{suffix}")
    finally:
        driver.quit()
        node.close()


def fill(node):
    """Agents that did something, failed, or wait."""
    node.end("assistant/spring-cleaning")
    node.append("assistant/boat-trip", type="message", text="fail: model_refused")
    node.append("assistant/me", type="message", text="say: Good morning! What shall we look at first?")
    node.append("assistant/harbour-log", type="message", text=f"say: {TIDES}")
    node.append("publisher/spring-news", type="message", text="News of the spring release")
    node.request("PUT", "/v1/stream/orders/42")
    node.request("POST", "/v1/stream/orders/42", [{"state": "paid"}, {"state": "sent"}])
    wait_for("one to wait", lambda: node.status("publisher/spring-news")["state"] == "waiting")
    wait_for("one to have answered", lambda: node.entries("assistant/harbour-log", "turn.completed"))


def desktop(console, scheme):
    console.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    console.device(1280, 900, scale=1.5)


def phone(console, scheme):
    console.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    console.device(390, 844, scale=1.5, mobile=True)


def show_approval(console):
    console.script("document.querySelector('.approval').scrollIntoView({ block: innerWidth < 600 ? 'end' : 'start' }); document.querySelector('#log').scrollTop += innerWidth < 600 ? 12 : -20")


def take_page(console, name, agent, view, shown):
    console.open(agent, view=view)
    console.find(f"#rows {shown}")
    wait_for("the list", lambda: console.script("return document.querySelectorAll('#list li').length") > 4)
    take(console.driver, name)


def take(driver, name):
    path = IMAGES / f"{name}.png"
    IMAGES.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(path))
    if shutil.which("pngquant"):
        subprocess.run(["pngquant", "--force", "--skip-if-larger", "--quality=90-100", "--output", path, path], check=False)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
