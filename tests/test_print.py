"""The pages on paper: nothing is wider than an A4 page, in a browser that lays them out as it prints them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from make_night import make, record, write
from test_report import scan
from test_report import write as write_stage

from flows.night import summarise
from models.methods import METHODS
from pipeline.report import write_report
from pipeline.settings import parse

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MM = 96 / 25.4
PAPERS = {"A4 portrait": round((210 - 26) * MM), "A4 landscape": round((297 - 26) * MM)}  # less both margins
LONG = "sub-" + "a" * 64 + "_ses-" + "b" * 64
CUT = """
<script>window.onload = () => {
  const cut = new Set(), page = document.documentElement.clientWidth + 1;
  for (const each of document.body.querySelectorAll("*")) {
    const name = each.tagName.toLowerCase() + "." + (each.className.baseVal ?? each.className);
    const box = each.getBoundingClientRect();
    if (box.width && (box.right > page || box.left < -1)) cut.add(name + " beyond the page");
    const hides = getComputedStyle(each).overflowX != "visible";
    if (hides && !each.closest("svg") && each.scrollWidth > each.clientWidth + 1) cut.add(name + " hides a part");
  }
  document.querySelectorAll("ol").forEach(list => {
    const mark = document.createElement("canvas").getContext("2d");
    mark.font = getComputedStyle(list).font;
    const room = parseFloat(getComputedStyle(list).paddingLeft);
    if (1.3 * mark.measureText(list.children.length + ". ").width > room) cut.add("a number of a list");
  });
  document.body.innerHTML = "<pre id=cut></pre>";
  document.getElementById("cut").textContent = JSON.stringify([...cut]);
}</script>
"""


def cut(page: str, width_px: int, folder: Path) -> list[str]:
    """What a browser of that width would cut, of the page as it is printed."""
    printed = re.sub("@media print", "@media all", page) + CUT
    printed = re.sub(r"@media (screen|\(prefers-color-scheme)[^{]*", "@media not all ", printed)
    printed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", printed)  # the page itself runs no script
    (folder / "page.html").write_text(printed)
    words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    words += [f"--window-size={width_px},2000", "--hide-scrollbars", "--dump-dom", f"file://{folder / 'page.html'}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    found = re.search(r'<pre id="cut">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    listed: list[str] = json.loads(found[1])
    return listed


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fullest there is: every method, names as long as they may be."""
    made = ("rts", *(m for m in METHODS if m not in ("rts", "dip", "diffusion", "cyclegan")))
    work = scan(tmp_path_factory.mktemp("report"), made=made)
    field = {"total_ppm": work.find("field").array("total_ppm")}  # type: ignore[union-attr]
    write_stage(work, "field", field, median_sd_ppm=0.003, excluded_share=0.0123)
    return write_report(work, LONG, parse({"method": "rts", "also": list(made[1:])}))


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = make(tmp_path_factory.mktemp("summary"), 60)
    write(output / "odd", record(LONG, verdict="check", methods=list(METHODS)))
    return summarise(output).read_text()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("paper", PAPERS)
def test_the_report_fits_its_paper(paper: str, report: str, tmp_path: Path) -> None:
    assert cut(report, PAPERS[paper], tmp_path) == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("paper", PAPERS)
def test_the_page_of_all_scans_fits_its_paper(paper: str, summary: str, tmp_path: Path) -> None:
    assert cut(summary, PAPERS[paper], tmp_path) == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_what_is_cut_is_noticed(tmp_path: Path) -> None:
    wide = "<body><div style='overflow-x: auto'><table><td style='min-width: 2000px'>a</table></div>"
    assert "div. hides a part" in cut(wide, PAPERS["A4 portrait"], tmp_path)
    many = "<body><ol style='padding-left: 5px'>" + "<li>a" * 10 + "</ol>"
    assert cut(many, PAPERS["A4 portrait"], tmp_path) == ["a number of a list"]


def printed_rules(page: str) -> str:
    """What the style sheet says for paper alone."""
    return "".join(re.findall(r"@media print \{(.*?)\n\}", page, re.DOTALL))


def test_the_rules_for_paper_let_nothing_scroll_or_keep_to_one_line(report: str) -> None:
    rules = printed_rules(report)
    assert "size: A4" in rules and re.search(r"\.scroll \{[^}]*overflow-x: visible", rules)
    assert re.search(r"\.pair \{[^}]*grid-template-columns: minmax\(0, 1fr\)", rules)
    assert re.search(r"\.check td:first-child[^{]*\{[^}]*white-space: normal", rules)
    assert re.search(r"\.wide \{[^}]*min-width: 0", rules)
