"""Takes the pictures of the README, docs/images/console*.png, from the real executable.

    .venv/bin/python Tests/Browser/screenshots.py

They look as they should with the fonts Inter and JetBrains Mono (fonts-inter, fonts-jetbrains-mono), and are made small by pngquant.
"""

import shutil
import subprocess

from console import Console, start_browser
from node import ROOT, Node, wait_for

IMAGES = ROOT / "docs" / "images"


def main():
    node = Node("steps-agent", "scripted:rate=20", options=["--idle", "1"]).start()
    driver = start_browser()
    try:
        console = Console(driver, node.url)
        driver.execute_cdp_cmd("Emulation.setLocaleOverride", {"locale": "en-GB"})
        fill(node)
        console.media(prefers_color_scheme="light", prefers_reduced_motion="reduce")
        console.device(1280, 900, scale=1.5)
        console.open("publisher/notes-2.4")
        console.send("Release notes for 2.4")
        console.find(".approval[data-decision=open]")
        console.wait_answer(lambda text: len(text) > 200 and text.startswith("Hello"), "the announcement to be under way")
        take(driver, "console")
        console.media(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
        console.click(".approval .approve")
        console.write("Mention the new settings page first.")
        console.click("#steer")
        console.wait_receipt("steer", "queued")
        take(driver, "console-dark")
        console.media(prefers_color_scheme="light", prefers_reduced_motion="reduce")
        console.device(390, 844, scale=1.5, mobile=True)
        console.open("publisher/spring-news")
        console.find(".approval[data-decision=open]")
        console.script("document.querySelector('.approval').scrollIntoView(); document.querySelector('#log').scrollTop -= 20")
        take(driver, "console-phone")
    finally:
        driver.quit()
        node.close()


def fill(node):
    """Agents that did something, or wait."""
    for name in ["assistant/harbour-log", "assistant/me"]:
        node.append(name, type="message", text="say: Good morning! What shall we look at first?")
    node.append("publisher/spring-news", type="message", text="News of the spring release")
    node.append("assistant/spring-cleaning", type="close")
    wait_for("one to wait", lambda: node.status("publisher/spring-news")["state"] == "waiting")


def take(driver, name):
    path = IMAGES / f"{name}.png"
    IMAGES.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(path))
    if shutil.which("pngquant"):
        subprocess.run(["pngquant", "--force", "--skip-if-larger", "--quality=90-100", "--output", path, path], check=False)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
