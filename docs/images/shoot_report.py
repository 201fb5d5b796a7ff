"""Photograph a report in Chromium, for the docs: its headlines in light, and a pair in dark.

python docs/images/shoot_report.py demo/report/report.html docs/images
"""

import argparse
import base64
import shutil
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def main() -> None:
    """Write ``report.png``, ``report-pair.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pair", help="id of the pair to open; default: the first quiet mistake, else the first pair")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(
            options=options, service=webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        )
        try:
            shoot(driver, args.page.resolve(), args.folder, args.pair)
        finally:
            driver.quit()


def shoot(driver: webdriver.Chrome, page: Path, folder: Path, pair: str | None) -> None:
    """Take the pictures of one page."""
    size = {"width": 1240, "height": 1000, "deviceScaleFactor": 1.5, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.as_uri())
    WebDriverWait(driver, 30).until(
        lambda driver: driver.execute_script("return document.documentElement.dataset.ready === 'yes'")
    )
    driver.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
    driver.execute_script("document.querySelector('main section').scrollIntoView()")
    save(driver, folder / "report.png")
    driver.execute_script(
        """
        document.querySelector('[data-set-theme=dark]').click();
        document.querySelector('#pairs').scrollIntoView();
        const quiet = document.querySelector('input[value=quiet]');
        quiet.click();
        if (!document.querySelector('.open')) document.querySelector('input[value=all]').click();
        """
    )
    open_pair = (
        f"[...document.querySelectorAll('.open')].find((node) => node.textContent === {pair!r})"
        if pair
        else "document.querySelector('.open')"
    )
    driver.execute_script(f"{open_pair}.click()")
    WebDriverWait(driver, 30).until(lambda driver: driver.execute_script("return !!document.querySelector('.answers')"))
    save(driver, folder / "report-pair.png")


def save(driver: webdriver.Chrome, path: Path) -> None:
    """Write what is on the screen."""
    driver.execute_script("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    path.write_bytes(base64.b64decode(shot["data"]))
    print(path)  # noqa: T201 - a script that people run


if __name__ == "__main__":
    main()
