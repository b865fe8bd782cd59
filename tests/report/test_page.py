"""report.html: self-contained, and used in a real browser: hover, keyboard, narrow, dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly", reason="the extra [report] is not installed")
pytest.importorskip("scipy", reason="the extra [report] is not installed")

import numpy as np
import torch

from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import dataset_from_arrays
from fedsynsam.fl.metrics import RoundMetrics
from fedsynsam.fl.synthetic import SyntheticSet, save_synthetic
from fedsynsam.report import page
from fedsynsam.report.charts import charts
from fedsynsam.report.comparison import write_comparison
from fedsynsam.report.groups import read_cells
from fedsynsam.report.runs import Run

VERSIONS = {"fedsynsam": "0", "python": "3", "torch": "2", "numpy": "2", "commit": None}


def run(folder: Path, algorithm: str, compressor: str, seed: int, accuracy: float) -> Run:
    config: dict[str, Any] = {"algorithm": algorithm, "compressor": compressor, "seed": seed, "versions": VERSIONS}
    rounds = [
        RoundMetrics(
            round=number, train_loss=1 / number, uplink_bytes=100, downlink_bytes=1000, seconds=0.1,
            test_accuracy=accuracy * number / 5, test_loss=2 / number,
        )
        for number in range(1, 6)
    ]  # fmt: skip
    rounds[4] = replace(rounds[4], sharpness=10.0 + seed, cosines={"local": 0.1, "synthetic": 0.8})
    summary = {"final_accuracy": accuracy, "last_accuracy": accuracy, "uplink_bytes": 500, "uplink_ratio": 80.0}
    summary |= {"downlink_bytes": 5000, "seconds": 0.5, "dense_uplink_bytes": 40000, "parameters": 1000, "rounds": 5}
    summary |= {"sharpness": 10.0 + seed}
    path = folder / f"{algorithm}-{compressor}-{seed}"
    path.mkdir(parents=True)
    if algorithm == "fedsynsam":
        learned = SyntheticSet(torch.rand(20, 1, 8, 8), torch.eye(10).repeat(2, 1), torch.tensor(-3.0))
        images, labels = np.arange(1280, dtype=np.float32).reshape(20, 8, 8), np.arange(20) % 10
        arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
        dataset = dataset_from_arrays("gradients", arrays)
        save_synthetic(path / "synthetic.safetensors", learned, dataset, RunConfig(), 5)
    return Run(path, config, rounds, summary)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    accuracies = {"fedavg": 0.70, "fedsam": 0.69, "fedlesam": 0.68, "fedsynsam": 0.72, "realset": 0.73}
    runs = [
        run(folder, name, spec, seed, accuracy + 0.01 * seed * (1 + len(name) % 3))
        for name, accuracy in accuracies.items()
        for spec in ("none", "topk:0.01", "quantize:2")
        for seed in (0, 1)
    ]
    write_comparison(read_cells(runs), folder, command="fedsynsam compare --compressors '<none>'")
    return folder / "report.html"


class References(HTMLParser):
    """Collects what a page would load, and the text of its headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.headings: list[str] = []
        self._heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._heading = tag == "h2"
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href") and tag != "a"]

    def handle_data(self, data: str) -> None:
        if self._heading:
            self.headings.append(data)
        self._heading = False


def test_nothing_is_loaded_from_elsewhere(report: Path) -> None:
    found = References(report.read_text())
    assert found.loaded
    assert all(address.startswith("data:") for address in found.loaded)


def test_every_section_is_there(report: Path) -> None:
    text = report.read_text()
    headings = References(text).headings
    for wanted in ("Test accuracy", "Test loss", "against bytes", "How well each", "against bits", "against density"):
        assert any(wanted in heading for heading in headings), wanted
    assert {"The synthetic images", "The commands"} <= set(headings)
    assert text.count("<summary>The numbers</summary>") == 7
    assert "fedsynsam compare --compressors &#x27;&lt;none&gt;&#x27;" in text
    assert "\nfedsynsam run --algorithm fedavg --compressor quantize:2 --seed 1\n" in text


def test_compressors_of_the_same_density_do_not_hide_each_other(tmp_path: Path) -> None:
    specs = ("none", "topk:0.01", "chunktopk:0.01")
    runs = [run(tmp_path, "fedavg", spec, place, 0.5) for place, spec in enumerate(specs)]
    [chart] = [chart for chart in charts(read_cells(runs)) if chart.title.endswith("against density")]
    assert [row[1:] for row in chart.rows] == [
        ["chunktopk:0.01", "0.01", "12.000"], ["topk:0.01", "0.01", "11.000"], ["none", "1", "10.000"]
    ]  # fmt: skip


def test_a_set_that_was_given_is_not_called_learned(tmp_path: Path) -> None:
    one = run(tmp_path, "fedsynsam", "none", 0, 0.5)
    assert "Learned last in the run fedsynsam, none, seed 0" in page.comparison_page(read_cells([one]), [], None)
    one.config.update(synthetic="set.safetensors")
    text = page.comparison_page(read_cells([one]), [], None)
    assert "Given, in a file, to the run fedsynsam, none, seed 0" in text
    assert "Learned last" not in text
    one.rounds[2] = replace(one.rounds[2], synthetic_loss=0.5)
    assert "Learned last" in page.comparison_page(read_cells([one]), [], None)


def test_what_did_not_finish_is_on_the_page_and_in_no_chart(tmp_path: Path) -> None:
    runs = [run(tmp_path, name, "none", 0, 0.5) for name in ("fedavg", "fedsynsam")]
    planned = [{**runs[0].config, "algorithm": name, "seed": seed} for name in ("fedavg", "fedsam") for seed in (0, 1)]
    comparison = read_cells(runs, planned=planned)
    text = page.comparison_page(comparison, [], None)
    assert "<p>Seeds 0, 1." in text
    assert '<th scope="row">fedsam</th><td>failed in 2 of 2 seeds</td>' in text
    assert all({trace.name for trace in chart.figure.data}.isdisjoint({"fedsam"}) for chart in charts(comparison))


def test_the_command_of_a_run_says_where_its_data_are(tmp_path: Path) -> None:
    one = run(tmp_path, "fedavg", "none", 0, 0.5)
    one.config.update(dataset="cifar10", data_dir="my data", threads=7)
    assert one.command == "fedsynsam run --algorithm fedavg --compressor none --dataset cifar10 --data-dir 'my data'"


def test_without_the_extra_the_page_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "NEEDED", ("plotly", "no_such_package"))
    assert page.why_no_page() == "report.html needs no_such_package: pip install 'fedsynsam[report]'"
    written = write_comparison(read_cells([run(tmp_path, "fedavg", "none", 0, 0.5)]), tmp_path)
    assert "report.html" not in {path.name for path in written}
    assert not (tmp_path / "report.html").exists()


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver on PATH (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu")
    for flag in ("--headless=new", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)):
        options.add_argument(flag)
    driven = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driven
    driven.quit()


def open_page(browser: Any, report: Path, width: int) -> None:
    browser.set_window_size(width, 900)
    browser.get(report.as_uri())
    browser.set_script_timeout(20)
    drawn = "return document.querySelectorAll('.js-plotly-plot .main-svg').length"
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda page: page.execute_script(drawn) >= 7)


@pytest.fixture
def phone(browser: Any) -> Iterator[None]:
    """The browser as that of a phone: a window alone is never narrower than 500 pixels."""
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    yield
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [1200, 500])
def test_page_fits_without_errors(browser: Any, report: Path, width: int) -> None:
    check_page_fits(browser, report, width)


def test_page_fits_a_phone(browser: Any, report: Path, phone: None) -> None:
    check_page_fits(browser, report, 360)


def check_page_fits(browser: Any, report: Path, width: int) -> None:
    open_page(browser, report, width)
    assert browser.execute_script("return window.innerWidth") <= width
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    widest = "return Math.max(...[...document.querySelectorAll('.js-plotly-plot')].map(e => e.offsetWidth))"
    assert browser.execute_script(widest) <= width


def test_hovering_shows_values(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    open_page(browser, report, 1200)
    chart = browser.find_element("id", "chart-0")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    point = chart.find_elements("css selector", ".points path")[2]
    ActionChains(browser).move_to_element(point).pause(0.5).perform()
    assert "round 3" in chart.find_element("css selector", ".hoverlayer").text


def test_no_button_sends_a_chart_away(browser: Any, report: Path) -> None:
    open_page(browser, report, 1200)
    buttons = browser.find_elements("css selector", ".modebar-btn")
    assert {button.get_attribute("data-title") for button in buttons} == {"Download plot as a PNG", "Reset axes"}


def test_the_numbers_open_by_keyboard(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, report, 1200)
    summary = browser.find_element("tag name", "summary")
    summary.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.querySelector('details').open")
    assert browser.find_element("css selector", "details table").is_displayed()


def shown(browser: Any, chart: int) -> list[str]:
    """The settings of the lines that a chart shows."""
    script = "return document.getElementById(arguments[0]).data.filter(l => l.visible === true).map(l => l.meta)"
    return sorted(set(browser.execute_script(script, f"chart-{chart}")))


def test_one_setting_at_a_time_is_shown_and_chosen_by_keyboard(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, report, 500)
    assert shown(browser, 0) == ["none"]
    browser.find_element("css selector", "select[data-chart=chart-0]").send_keys(Keys.ARROW_DOWN)
    assert shown(browser, 0) == ["topk:0.01"]
    browser.find_element("css selector", "select[data-chart=chart-0]").send_keys(Keys.END)
    assert shown(browser, 0) == ["none", "quantize:2", "topk:0.01"]
    assert shown(browser, 1) == ["none"]


def test_a_sweep_is_drawn_against_its_values(browser: Any, tmp_path: Path) -> None:
    runs = []
    for alpha in (0.5, float("inf"), 0.1):
        for name, accuracy in {"fedavg": 0.7, "fedsynsam": 0.72}.items():
            for seed in (0, 1):
                one = run(tmp_path / str(alpha), name, "none", seed, accuracy + 0.02 * seed + min(alpha, 1) / 10)
                runs.append(replace(one, config={**one.config, "alpha": alpha}))
    write_comparison(read_cells(runs), tmp_path)
    open_page(browser, tmp_path / "report.html", 500)
    assert browser.get_log("browser") == []
    heading = browser.find_element("xpath", "//h2[text()='Accuracy against alpha']")
    assert heading.is_displayed()
    names = browser.find_elements("css selector", "#chart-0 .xtick text")
    assert [name.text for name in names] == ["0.1", "0.5", "inf"]
    lines = browser.execute_script("return document.getElementById('chart-0').data.map(l => [l.name, ...l.y])")
    assert [name for name, *_ in lines] == ["fedavg", "fedsynsam"]
    assert lines[0][1:] == pytest.approx([72.0, 76.0, 81.0])
    assert shown(browser, 2) == ["alpha = 0.1"]


def test_eighteen_algorithms_are_told_apart(tmp_path: Path) -> None:
    from fedsynsam.report.charts import charts

    runs = [run(tmp_path, f"algorithm{number}", "none", 0, 0.5) for number in range(18)]
    figure = charts(read_cells(runs))[0].figure
    assert len({(line.line.color, line.marker.symbol) for line in figure.data}) == 18


def test_dark_mode_is_dark(browser: Any, report: Path) -> None:
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        open_page(browser, report, 1200)
        ink = browser.execute_script("return getComputedStyle(document.body).color")
        tick = browser.find_element("css selector", "#chart-0 .xtick text").value_of_css_property("fill")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert min(int(part) for part in ink[4:-1].split(",")) > 200
    assert tick == ink, "numbers on the axes as legible as the text"
