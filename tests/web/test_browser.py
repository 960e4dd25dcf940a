"""The page in a real browser: Debian's chromium, driven by selenium against a real server."""

import io
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from samdiffsr.cli import main
from samdiffsr.web.limits import Access
from support import noise_image

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no browser here: apt-get install chromium chromium-driver"
)
SECONDS = 60
PHONE, TABLET, DESK = (360, 740), (820, 1100), (1440, 900)

CONTRAST = """
const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const found = [];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  if (!own || !node.checkVisibility() || node.closest(".stage, .hidden, .skip, :disabled, dialog, option")) continue;
  let under = node;
  while (under && (rgba(getComputedStyle(under).backgroundColor)[3] ?? 1) < 1) under = under.parentElement;
  if (!under) continue;
  const lights = [light(rgba(getComputedStyle(node).color)), light(rgba(getComputedStyle(under).backgroundColor))];
  const contrast = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
  if (contrast < 4.5) found.push(`${node.tagName} ${node.textContent.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
}
return found;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1440,900"):
        options.add_argument(switch)
    options.add_experimental_option("prefs", {"profile.default_content_setting_values.automatic_downloads": 1})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(SECONDS)
    yield driver
    driver.quit()


class Page:
    """The page as a user meets it."""

    def __init__(self, browser, address: str, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        behaviour = {"behavior": "allow", "downloadPath": str(folder)}
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        self.resize(*DESK)
        browser.get_log("browser")
        browser.get(address)
        self.wait("return !document.getElementById('limit') || document.getElementById('limit').textContent !== ''")

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def at(self, identity: str):
        return self.browser.find_element("id", identity)

    def wait(self, script: str) -> None:
        limit = time.monotonic() + SECONDS
        while not self.browser.execute_script(script):
            assert time.monotonic() < limit, f"{script}\n{self.at('pictures').text}"
            time.sleep(0.05)

    def choose(self, *files: Path) -> None:
        identity = "files" if self.at("empty").is_displayed() else "more"
        self.at(identity).send_keys("\n".join(map(str, files)))

    def wait_for_all(self) -> None:
        self.wait(
            "const cards = [...document.querySelectorAll('.card')];"  # none yet: the example is still fetched
            "return cards.length && cards.every((card) => ['done', 'failed'].includes(card.dataset.state))"
        )

    def downloaded(self, name: str) -> bytes:
        limit = time.monotonic() + SECONDS
        while not (self.folder / name).exists():
            assert time.monotonic() < limit, list(self.folder.iterdir())
            time.sleep(0.05)
        return (self.folder / name).read_bytes()

    def caption(self) -> str:
        return self.at("caption-size").text.replace("\u00d7", "x")

    def share(self) -> int:
        return int(self.at("divider").get_attribute("aria-valuenow"))

    def tab_to(self, identity: str) -> None:
        from selenium.webdriver import ActionChains, Keys

        for _ in range(60):
            ActionChains(self.browser).send_keys(Keys.TAB).perform()
            if self.browser.switch_to.active_element.get_attribute("id") == identity:
                return
        raise AssertionError(f"{identity} cannot be reached by the Tab key")


@pytest.fixture
def open_page(browser, serve_on_a_port, tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir(exist_ok=True)
    return lambda **options: Page(browser, serve_on_a_port(**options), folder)


@pytest.fixture
def page(open_page):
    return open_page()


def command_line(source: Path, folder: Path, *options: str) -> Path:
    with pytest.raises(SystemExit) as end:
        main(["upscale", str(source), "-o", str(folder), "--overwrite", *options])
    assert end.value.code == 0
    return next(folder.glob(source.stem + "_*"))


def test_upload_slider_and_download(page, tiny_pipe_dir, tmp_path) -> None:
    from selenium.webdriver import ActionChains

    source = noise_image(tmp_path / "a photo.jpg", size=(40, 30))
    expected = command_line(source, tmp_path / "out", "-m", str(tiny_pipe_dir))
    page.choose(source)
    page.at("start").click()
    page.wait_for_all()
    assert page.caption() == "40 x 30 → 160 x 120" and page.share() == 50
    ActionChains(page.browser).drag_and_drop_by_offset(page.at("divider"), 150, 0).perform()
    assert page.share() > 60
    stage = page.at("stage")
    ActionChains(page.browser).move_to_element_with_offset(stage, -200, 100).click().perform()
    assert page.share() < 40
    page.at("save").click()
    assert page.downloaded(expected.name) == expected.read_bytes()


def test_by_keyboard_alone(page, tiny_pipe_dir, tmp_path) -> None:
    """From the file dialogue on, which the system draws and no page can script."""
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(page.browser).send_keys(*keys).perform()

    source = noise_image(tmp_path / "a.png", size=(30, 20))
    options = ["-s", "8", "--detail", "0.9", "--seed", "5", "--format", "webp", "--quality", "50", "--strip-metadata"]
    expected = command_line(source, tmp_path / "out", "-m", str(tiny_pipe_dir), *options)
    page.tab_to("files")
    page.choose(source)
    assert page.browser.switch_to.active_element.get_attribute("id") == "start"
    page.browser.execute_script("document.activeElement.blur()")
    page.tab_to("clear")
    press(Keys.TAB, Keys.ARROW_RIGHT)  # into the sizes: from 4 to 8
    page.tab_to("detail")
    press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    page.tab_to("format")
    press("w")
    page.tab_to("quality")
    press("50")
    page.tab_to("keep")
    press(Keys.SPACE)
    press(Keys.TAB, Keys.ENTER)  # more settings
    page.tab_to("seed")
    press("5", Keys.ENTER)  # what Tab comes to is selected
    page.wait_for_all()
    page.browser.execute_script("document.activeElement.blur()")
    page.tab_to("divider")
    press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.share() == 52
    press(Keys.HOME)
    assert page.share() == 0
    press(Keys.END)
    assert page.share() == 100
    press(Keys.PAGE_DOWN)
    assert page.share() == 90
    page.tab_to("zoom-in")
    before = page.at("zoom").text
    press(Keys.ENTER)
    assert page.at("zoom").text != before
    page.tab_to("save")
    press(Keys.ENTER)
    assert page.downloaded(expected.name) == expected.read_bytes()


def test_an_error_for_a_text_file(page, tmp_path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear Sir or Madam")
    page.choose(letter, noise_image(tmp_path / "a.png"))
    page.at("start").click()
    page.wait_for_all()
    assert "'letter.txt' is not an image" in page.at("message").text
    assert "'letter.txt'" in page.at("alert").get_attribute("textContent")
    states = page.browser.execute_script("return [...document.querySelectorAll('.card')].map((c) => c.dataset.state)")
    assert states == ["failed", "done"] and not page.at("start").is_enabled()


def test_a_setting_that_cannot_be(page, tmp_path) -> None:
    page.choose(noise_image(tmp_path / "a.png"))
    page.browser.find_element("css selector", "summary").click()
    page.at("steps").send_keys("many")
    page.at("start").click()
    assert "whole number" in page.at("go-help").text
    assert page.browser.switch_to.active_element.get_attribute("id") == "steps"
    page.at("steps").clear()
    page.at("start").click()
    page.wait_for_all()


def test_settings_that_not_every_model_has(page, open_page, able_pipe, tmp_path) -> None:
    """Cleaning and regions are offered where the model can, and give what the command line gives."""
    assert not page.at("clean-field").is_displayed()
    able_pipe.save_pretrained(tmp_path / "able")
    source = noise_image(tmp_path / "a.png", size=(30, 20))
    options = ["--clean", "1", "--structure", "felzenszwalb", "--precision", "float32"]
    expected = command_line(source, tmp_path / "out", "-m", str(tmp_path / "able"), *options)
    page = open_page(pipe=able_pipe)
    assert page.at("clean-field").is_displayed()
    page.choose(source)
    page.browser.find_element("css selector", "summary").click()
    assert page.at("precision").text.strip().startswith("Automatic: ")
    for identity, value in (("structure", "felzenszwalb"), ("precision", "float32")):
        page.at(identity).find_element("css selector", f"option[value={value}]").click()
    page.browser.find_element("css selector", "[name=clean][value='1']").click()
    page.at("start").click()
    page.wait_for_all()
    page.at("save").click()
    assert page.downloaded(expected.name) == expected.read_bytes()
    assert page.at("caption-clean").text == "(cleaned: 1.00)"
    page.browser.find_element("css selector", "[name=clean][value=auto]").click()
    page.at("start").click()
    page.wait_for_all()
    with Image.open(source) as image:
        level = able_pipe(image, num_inference_steps=1).levels[0]
    assert page.at("caption-clean").text == f"(cleaned: {level:.2f}, estimated)"
    page.resize(*PHONE)
    right = "const range = document.createRange(); range.selectNodeContents(document.getElementById('caption-clean'));"
    right += "return range.getBoundingClientRect().right"
    assert page.browser.execute_script(right) <= page.at("save").location["x"]
    page.resize(*DESK)
    page.at("consistency").click()
    page.at("start").click()  # without the level, which would contradict it
    page.wait_for_all()
    assert page.at("message").text == "" and page.at("caption-clean").text == "(not cleaned)"


def test_several_pictures_and_one_zip(page, tiny_pipe_dir, tmp_path) -> None:
    sources = [noise_image(tmp_path / name) for name in ("a.png", "b.webp", "ü.jpg")]
    expected = [command_line(source, tmp_path / "out", "-m", str(tiny_pipe_dir)) for source in sources]
    page.choose(*sources)
    page.choose(noise_image(tmp_path / "other" / "a.png"))
    page.at("start").click()
    page.wait_for_all()
    page.at("save-all").click()
    with zipfile.ZipFile(io.BytesIO(page.downloaded("samdiffsr.zip"))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [*(file.name for file in expected), "a_x4 (2).png"]
        for file in expected:
            assert archive.read(file.name) == file.read_bytes()


def test_cancelling(page, tmp_path) -> None:
    page.choose(noise_image(tmp_path / "a.png", size=(400, 400)))
    page.browser.find_element("css selector", "summary").click()
    page.at("steps").send_keys("100")
    page.at("start").click()
    page.wait("return document.querySelector('.card').dataset.state === 'running'")
    page.wait("return document.getElementById('working-text').textContent.includes('left')")
    page.at("cancel").click()
    page.wait("return document.querySelector('.card').dataset.state === 'new'")
    script = "fetch('/healthz').then((answer) => answer.json()).then((found) => arguments[0](found.running))"
    limit = time.monotonic() + SECONDS
    while page.browser.execute_async_script(script):
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_pictures_that_are_pasted_or_dropped(page, tmp_path, kind) -> None:
    script = """
    const bytes = new Uint8Array(arguments[1]), data = new DataTransfer();
    data.items.add(new File([bytes], "given.png", {type: "image/png"}));
    const options = {bubbles: true, cancelable: true, clipboardData: data, dataTransfer: data};
    const Kind = arguments[0] === "paste" ? ClipboardEvent : DragEvent;
    document.body.dispatchEvent(new Kind(arguments[0], options));
    """
    page.browser.execute_script(script, kind, list(noise_image(tmp_path / "a.png").read_bytes()))
    page.at("start").click()
    page.wait_for_all()
    assert page.caption() == "6 x 5 → 24 x 20"


def test_the_example(page) -> None:
    page.at("example").click()
    page.wait_for_all()
    assert page.caption() == "112 x 75 → 448 x 300"


def test_a_token_is_asked_for(open_page, browser, serve_on_a_port, tmp_path) -> None:
    address = serve_on_a_port(access=Access(token="sesame"))
    browser.get(address)
    token = browser.find_element("id", "token")
    limit = time.monotonic() + SECONDS
    while not token.is_displayed():
        assert time.monotonic() < limit
        time.sleep(0.05)
    token.send_keys("sesame\n")
    page = Page(browser, address, tmp_path)
    page.choose(noise_image(tmp_path / "a.png"))
    page.at("start").click()
    page.wait_for_all()
    assert page.browser.find_element("css selector", ".card").get_attribute("data-state") == "done"


def test_names_contrast_and_width(page, tmp_path) -> None:
    """In both themes and three sizes, with pictures that are new, done and failed."""
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear Sir or Madam")

    def check() -> None:
        for width, height in (PHONE, TABLET, DESK):
            page.resize(width, height)
            assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
            for theme in ("light", "dark"):
                page.browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
                time.sleep(0.3)  # colours fade from one theme to the other
                assert page.browser.execute_script(CONTRAST) == [], (width, theme)
        for control in page.browser.find_elements("css selector", "button, input, select, a, [role=slider]"):
            if control.is_displayed():
                assert control.accessible_name, control.get_attribute("outerHTML")
                assert control.size["height"] >= 24 or control.get_attribute("type") in ("checkbox", "file")

    check()
    page.choose(noise_image(tmp_path / "a very long name of a picture that does not fit into its place.png"), letter)
    page.browser.find_element("css selector", "summary").click()
    page.at("start").click()
    page.wait_for_all()
    page.choose(noise_image(tmp_path / "b.png"))
    check()


def test_nothing_comes_from_elsewhere_and_nothing_is_amiss(page, tmp_path) -> None:
    page.choose(noise_image(tmp_path / "a.png"))
    page.at("start").click()
    page.wait_for_all()
    script = "return performance.getEntriesByType('resource').map((one) => one.name)"
    origin = page.browser.execute_script("return location.origin")
    names = page.browser.execute_script(script)
    assert names and all(name.startswith((origin, f"blob:{origin}")) for name in names)
    page.browser.get(origin + "/docs")
    page.wait("return document.querySelectorAll('.route').length >= 7")
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
