"""Opens a page in a headless Chromium until its text matches: open_page.py <url> <regex>"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "Browser"))

from console import start_browser  # noqa: E402
from node import wait_for  # noqa: E402


def main():
    url, pattern = sys.argv[1:]
    driver = start_browser()
    try:
        driver.get(url)
        wait_for(f"'{pattern}' on {url}", lambda: re.search(pattern, driver.execute_script("return document.body.textContent")))
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
