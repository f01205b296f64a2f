import re
from html.parser import HTMLParser

import pytest

from polargrad.lab.comparison.page import Findings
from tests.runs import written_run

SCRIPT = "<script>alert(1)<"


class Page(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def requests(self):
        """What a browser would fetch or follow; places in the page itself do not count."""
        for _, attributes in self.tags:
            for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                if name in attributes and not attributes[name].startswith("#"):
                    yield attributes[name]


@pytest.fixture
def runs(tmp_path):
    return [
        written_run(tmp_path / "adamw", [(0, 8.0), (5, 6.0), (10, 5.0)]),
        written_run(tmp_path / "muon", [(0, 8.0), (5, 5.0), (10, 4.0)]),
        written_run(tmp_path / "slow", [(0, 8.0), (5, 7.0), (10, 6.0)]),
    ]


def _page(runs, tmp_path):
    html = Findings(runs).write_page(tmp_path / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_the_page_says_it_in_words_and_numbers(runs, tmp_path):
    _, page = _page(runs, tmp_path)
    for text in (
        "muon reaches adamw's final loss in 50% of its steps and 50% of its time.",
        "slow does not reach adamw's final loss.",
        "not reached",
        "5.0 (50%)",
        "hidden 0.01",
        "Condition number of the gradient",
        "Nuclear norm of the gradient",
    ):
        assert text in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 6


def test_the_page_asks_for_nothing_outside_itself(runs, tmp_path):
    html, page = _page(runs, tmp_path)
    assert set(page.requests()) == {
        f"{run.path.name}/{file}"
        for run in runs
        for file in ("spec.json", "environment.json", "records.jsonl", "summary.json")
    }
    assert all((tmp_path / link).is_file() for link in page.requests())
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "img", "object", "embed", "base", "form"}
    assert not re.search(r"@import|url\((?!#)", html)


def test_a_page_that_fetches_is_noticed():
    assert list(Page('<img src="https://example.org/a.png">').requests()) == ["https://example.org/a.png"]


def test_everything_from_a_run_is_escaped(tmp_path):
    run = written_run(
        tmp_path / f"{SCRIPT}&\"'",
        [(0, 8.0), (4, 5.0)],
        recipe=f"{SCRIPT}recipe",
        description=f"{SCRIPT}description",
        rates={f"{SCRIPT}role": 0.1},
        environment={"cpu": f"{SCRIPT}cpu", f"{SCRIPT}key": 1, "nested": {f"{SCRIPT}inner": f"{SCRIPT}value"}},
        status="diverged",
    )
    other = written_run(tmp_path / "x", [(0, 8.0), (4, 5.0)], recipe=f"{SCRIPT}recipe", rates={f"{SCRIPT}role": 0.2})
    html, page = _page([run, other], tmp_path)
    assert html.count("<script") == html.count("<script>\n// A click on a head sorts its table") == 1
    assert not [tag for tag, attributes in page.tags if any(k.startswith("on") for k in attributes)]
    for part in ("recipe", "description", "role", "cpu", "key", "inner", "value"):
        assert SCRIPT + part in page.text or part == "description"
    _, alone = _page([run], tmp_path)
    assert SCRIPT + "description" in alone.text
    assert all((tmp_path / _unquoted(link)).is_file() for link in alone.requests())


def _unquoted(link):
    from urllib.parse import unquote

    return unquote(link)


def test_a_sweep_lists_every_run_and_shows_the_best(tmp_path):
    runs = [
        written_run(tmp_path / f"adamw@{rate:g}", [(0, 8.0), (4, loss)], recipe="adamw", rates={"hidden": rate})
        for rate, loss in ((0.1, 5.0), (0.2, 4.0))
    ]
    _, page = _page(runs, tmp_path)
    assert "Learning rates tried" in page.text
    assert "best hidden rate, 0.2, is the highest tried" in page.text
    assert "What ranadamw@0.2" in re.sub(r"\s*\n\s*", "", page.text)


def test_runs_that_never_got_anywhere_are_reported(tmp_path):
    diverged = written_run(tmp_path / "adamw", [(0, 8.0), (1, None)], status="diverged")
    killed = written_run(tmp_path / "killed", [(0, 8.0)], status=None)
    _, page = _page([diverged, killed], tmp_path)
    assert "adamw diverged at step 1." in page.text
    assert "Step 1: diverged. the loss is nan" in page.text
    assert "Not run to the end: killed (unfinished)." in page.text


def test_a_report_is_made_again_in_its_place(runs, tmp_path):
    Findings(runs).write_page(tmp_path / "report.html")
    Findings(runs[:1]).write_page(tmp_path / "report.html")
    assert "muon" not in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob("*.part"))


def test_there_must_be_something_to_report(tmp_path):
    with pytest.raises(ValueError, match="no runs"):
        Findings([]).write_page(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
