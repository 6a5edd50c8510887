"""Tests of the HTML pages in headless Chromium: offline, drawn, sortable, readable."""

import re
import shutil
from types import SimpleNamespace

import pytest
from evaluated_runs import make_run

from msrec.launch.reporting.byte_sizes import format_bytes
from msrec.launch.reporting.report import write_report

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NOISE = {"bare": 1.0, "llm": 0.4}
LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = {name: make_run(folder / name, noise, name == "llm") for name, noise in NOISE.items()}
    return write_report(folder / "report.html", runs)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    from msrec.tools.planner.command.build_request import request_from_options
    from msrec.tools.planner.command.plan_command import plan_tables
    from msrec.tools.planner.command.plan_options import PlanOptions

    folder = tmp_path_factory.mktemp("plan")
    (folder / "tables.csv").write_text("name,rows,dim\na,1000000,64\nb,20000000,64\n")
    options = PlanOptions(folder / "tables.csv", gpu="h100", gpus_per_node=2, batch=4096)
    request = request_from_options(options)
    plan_tables(request, folder / "plan.json", folder / "plan.html")
    return folder / "plan.html"


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    from msrec.tools.planner.command.plan_options import PlanOptions
    from msrec.tools.planner.matrix.matrix_command import matrix_command

    folder = tmp_path_factory.mktemp("matrix")
    (folder / "tables.csv").write_text("name,rows,dim\na,1000000,64\nb,20000000,64\n")
    vary = ["gpu=h100,gb200", "gpus=1,8,12", "batch=512,4096"]
    options = PlanOptions(folder / "tables.csv", vary=vary, page=folder / "matrix.html")
    return folder / "matrix.html", matrix_command(options)


@pytest.fixture(scope="module")
def what_if(matrix):
    return matrix[0]


def opened(browser, path, width=1280, scheme="light"):
    """Opens a page without a network; also returns its requests and errors."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_offline(True)
    page = context.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_load_state("load")
    return SimpleNamespace(page=page, requests=requests, errors=errors)


@pytest.mark.parametrize("which", ["report", "plan", "what_if"])
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_page_opens_offline_and_is_readable(browser, request, which, width, scheme):
    path = request.getfixturevalue(which)
    found = opened(browser, path, width, scheme)
    assert found.errors == []
    assert {url for url in found.requests if not url.startswith("data:")} == {path.as_uri()}
    page = found.page
    plots = page.locator(".plot")
    assert plots.count() > 0
    for number in range(plots.count()):
        marks = plots.nth(number).locator(
            ".trace, .heatmaplayer image, .barlayer path, .points path"
        )
        assert marks.count() > 0, plots.nth(number).get_attribute("aria-label")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert contrast(page, "body") >= 7
    assert contrast(page, "thead th") >= 4.5
    ink = page.evaluate("getComputedStyle(document.body).color")
    drawn = page.locator(".plot .xtick text").first.evaluate("x => getComputedStyle(x).fill")
    assert drawn == ink
    page.context.close()


def contrast(page, selector):
    """Contrast of a text to its background, by WCAG 2."""
    text, behind = page.locator(selector).first.evaluate(
        """element => {
          const clear = color => color === "rgba(0, 0, 0, 0)";
          let at = element;
          const back = () => getComputedStyle(at).backgroundColor;
          while (clear(back()) && at.parentElement) at = at.parentElement;
          return [getComputedStyle(element).color, back()];
        }"""
    )
    high, low = sorted((luminance(text), luminance(behind)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(color):
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("width", [1280, 390])
def test_sliders_show_the_plan_of_their_values(browser, matrix, width):
    path, plans = matrix
    page = opened(browser, path, width).page
    _, gpus, batch = page.get_by_role("slider").all()
    drawn = page.locator(".explorer .plot").first

    def shown():
        return page.locator(".explorer .tiles strong").all_text_contents()

    def step():
        return drawn.evaluate("plot => plot.data.reduce((sum, part) => sum + part.x[0], 0)")

    assert shown()[0] == f"{plans.costs['h100', '1', '512'].step_ms:.3f} ms"
    for at, rows in enumerate(("512", "4096")):
        batch.press("ArrowRight" if at else "Home")
        for number in ("1", "8"):
            gpus.press("Home" if number == "1" else "ArrowRight")
            key = ("h100", number, rows)
            plan, costs = plans.plans[key], plans.costs[key]
            assert gpus.get_attribute("aria-valuetext") == number
            assert shown()[0] == f"{costs.step_ms:.3f} ms"
            assert shown()[1] == format_bytes(plan.peak_memory)
            assert shown()[4] == f"${costs.usd_per_billion:,.2f}"
            assert step() == pytest.approx(costs.step_ms)
    gpus.press("End")
    assert shown()[0] == "no plan"
    assert page.locator(".chosen").text_content() == plans.refused["h100", "12", "4096"]
    page.context.close()


def test_a_click_on_a_head_sorts_a_table_and_a_second_click_reverses_it(browser, report):
    page = opened(browser, report).page
    page.locator("summary", has_text="All metrics of bare").click()
    table = page.locator("details[open] table").first
    head = table.locator("thead th", has_text=re.compile("^rows"))
    place = head.evaluate("head => head.cellIndex")
    assert place > 0

    def column(at):
        return table.locator("tbody tr").evaluate_all(
            "(rows, at) => rows.map(row => row.cells[at].textContent)", at
        )

    assert column(0) == ["all", "search", "feed", "friends"]
    head.locator("button").click()
    assert column(0) == ["all", "friends", "search", "feed"]
    assert head.get_attribute("aria-sort") == "ascending"
    rows = [int(cell.replace(",", "")) for cell in column(place)]
    assert rows[1:] == sorted(rows[1:])
    head.locator("button").click()
    assert column(0) == ["all", "feed", "search", "friends"]
    page.context.close()
