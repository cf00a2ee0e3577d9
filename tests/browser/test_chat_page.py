# SPDX-License-Identifier: Apache-2.0
"""The chat page in headless Chromium: a streamed answer, the stop button, errors.

Needs a Chromium on PATH and the extra ``browser``; skips without them. ``MINDFORMERS_SCREENSHOT=FILE`` keeps a picture.
"""

import os
import shutil

import pytest

from tests.unit.conftest import tiny_model_file  # noqa: F401
from tests.unit.serve.conftest import NAME, Server, engine, network, service, tokenizer  # noqa: F401

httpx = pytest.importorskip("httpx")
playwright = pytest.importorskip("playwright.sync_api", reason="the extra 'browser' is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")


@pytest.fixture
def page():
    """An empty tab."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1100, "height": 700})
        yield tab
        browser.close()


@pytest.fixture
def address(service):  # noqa: F811
    """A running service that wants an API key."""
    from mindformers.serve.api import build_app

    server = Server(build_app(service, NAME, chat=False, api_key="key"))
    yield server.url
    server.stop()


def test_talk(page, address, engine, monkeypatch):  # noqa: F811
    page.goto(address)
    page.wait_for_function("document.getElementById('model').textContent.includes('API key')")
    page.fill("#key", "key")
    page.press("#key", "Tab")
    page.wait_for_function(f"document.getElementById('model').textContent === '{NAME}'")
    for field, value in {"temperature": "0", "top_k": "0", "max_tokens": "20"}.items():
        page.fill(f"#{field}", value)
    page.fill("#text", "the quick brown fox")
    page.press("#text", "Enter")
    page.wait_for_selector(".note")
    body = {"model": NAME, "prompt": "the quick brown fox", "max_tokens": 20, "temperature": 0}
    whole = httpx.post(f"{address}/v1/completions", json=body, headers={"Authorization": "Bearer key"}, timeout=60)
    assert page.locator(".assistant").first.text_content() == whole.json()["choices"][0]["text"].lstrip()
    assert "20 tokens in" in page.locator(".note").first.inner_text()
    assert page.locator("#speed").inner_text().endswith("tokens/s")
    if os.environ.get("MINDFORMERS_SCREENSHOT"):
        page.screenshot(path=os.environ["MINDFORMERS_SCREENSHOT"])

    slow = engine._model.next_tokens
    monkeypatch.setattr(engine._model, "next_tokens", lambda *args: (page_pause(), slow(*args))[1])
    page.fill("#max_tokens", "40")
    page.click("#clear")
    page.fill("#text", "seven wizards")
    page.click("#send")
    page.wait_for_function("document.querySelector('.assistant').textContent.length > 3")
    page.click("#stop")
    page.wait_for_selector("text=stopped")
    assert page.is_disabled("#stop")
    assert page.is_enabled("#send")

    page.fill("#text", "fox " * 200)
    page.click("#send")
    page.wait_for_selector(".error")
    assert "leaves no room for an answer" in page.locator(".error").inner_text()


def page_pause() -> None:
    """Slow the model down, so that there is something to stop."""
    import time

    time.sleep(0.1)
