"""How a night went: counts from manifests and locks, the summary page, and what is told to whom, without a label."""

from __future__ import annotations

import asyncio
import fcntl
import http.server
import importlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from make_night import START, claim, failure, make, record, write
from test_report import scan

import pipeline.ledger
from flows.night import Page, artifact_markdown, counts, headline, look, notify, summarise, tally
from flows.night.strips import moments, strips
from flows.night.thumbnail import FIGURE, thumbnail
from flows.site import Site
from pipeline.errors import ChironError
from pipeline.report import write_report
from pipeline.settings import parse

telling = importlib.import_module("flows.night.notify")  # the module, not the function of its name

SENTINEL = "sub-Zebedee"
NASTY = "sub-<script>alert(1)</script>_ses-\"'&"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return make(tmp_path / "out", 40)


def test_counts_account_for_every_scan(output: Path) -> None:
    found = counts(output)
    assert found["scans"] == 40
    assert found["published"] == {"usable": 34, "check": 2, "do not use": 1}
    assert sum(found["set_aside"].values()) == 2 and sum(found["failed"].values()) == 1
    assert headline(found) == "40 scans: 34 usable, 2 to check, 1 not to be used, 2 set aside, 1 failed"


def test_counts_since_a_time_leave_out_what_ended_before(output: Path) -> None:
    found = counts(output, START + 15000)
    assert 0 < found["scans"] < 40
    last = max(entry.finished for entry in look(output).entries)
    assert counts(output, last + 0.9)["scans"] == 1, "manifests tell whole seconds"
    assert counts(output, START + 1e6)["scans"] == 0
    assert headline(counts(output, START + 1e6)) == "No scan has ended yet"


def test_a_scan_runs_while_its_lock_is_held_and_waits_while_nobody_has_it(output: Path) -> None:
    with claim(
        output, "a", "sub-a_ses-1", now='{"stage": "mask", "title": "finding the brain", "since": 5}', held=True
    ):
        claim(output, "b", "sub-b_ses-1", "next.json").close()
        claim(output, "c", "sub-c_ses-1").close()  # taken by a process that died
        claim(output, f"{0:012x}", "sub-d_ses-1").close()  # published
        night = look(output)
        assert [(r.label, r.stage, r.title, r.since) for r in night.running] == [
            ("sub-a_ses-1", "mask", "finding the brain", 5)
        ]
        assert night.waiting_labels == ["sub-b_ses-1", "sub-c_ses-1"]
        assert headline(tally(night)).endswith("; 1 running, 2 waiting")
    assert not look(output).running


def test_looking_never_keeps_a_scan_from_its_process(output: Path) -> None:
    claim(output, "a", "sub-a").close()
    lock = output / ".chiron/work/a/lock"
    look(output)
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.unlink()
    look(output)
    assert not lock.exists(), "looking makes no lock"


@pytest.mark.parametrize("now", ["", "{", "[]", '{"since": "x", "title": 3}'])
def test_a_note_that_is_cut_off_still_tells_that_the_scan_runs(output: Path, now: str) -> None:
    with claim(output, "a", "sub-a", now=now, held=True):
        (running,) = look(output).running
        assert running.label == "sub-a" and running.since is None


def test_a_failure_counts_once_though_an_earlier_map_stands(tmp_path: Path) -> None:
    broken = record("sub-a", "failed", "do not use", failure=failure("P007", "a mask of 3 ml"))
    write(tmp_path / "sub-a", record("sub-a"))
    write(tmp_path / "failed/sub-a", broken)
    (entry,) = look(tmp_path).entries
    assert entry.kind == "failed" and "earlier run still stands" in entry.reasons[1]
    assert counts(tmp_path)["scans"] == 1


def test_no_word_of_a_strange_manifest_reaches_the_counts(tmp_path: Path) -> None:
    write(tmp_path / "failed/a", record("sub-a", "failed", SENTINEL, failure={"code": SENTINEL, "sentence": ""}))
    write(tmp_path / "sub-b", record("sub-b", verdict=SENTINEL))
    found = counts(tmp_path)
    assert SENTINEL not in json.dumps(found) and found["failed"] == {"unknown": 1} and found["published"]["check"] == 1
    assert "unknown" in artifact_markdown(found)


def test_the_artifact_says_what_to_do_and_names_nobody(output: Path) -> None:
    said = artifact_markdown(counts(output))
    assert "40 scans" in said and "| P001 |" in said and "Export phase" in said and "sub-" not in said


class Reader(HTMLParser):
    """Every tag opened is closed, in order; links and texts are kept."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_scan_the_worst_first_and_links_to_its_report(output: Path) -> None:
    page = Reader(summarise(output).read_text())
    entries = look(output).entries
    places = [page.text.index(entry.label) for entry in entries]
    assert len(places) == 40 and places == sorted(places)
    assert [entry.kind for entry in entries[:4]] == ["failed", "set aside", "set aside", "do not use"]
    reports = {link for link in page.links if link.endswith(".html")}
    assert len(reports) == 38 and all((output / link).is_file() for link in reports)
    assert "34 of 40 scans are usable" in page.text and "Export phase" in page.text and "streaks" in page.text
    assert "Signal-to-noise ratio" in page.text


def test_the_page_fetches_nothing_and_runs_nothing(output: Path) -> None:
    text = summarise(output).read_text()
    page = Reader(text)
    assert "script" not in page.tags and "default-src 'none'" in text and not re.search(r"url\(|@import", text)
    assert all(not re.match(r"[a-z]+:", link) or link.startswith("data:image/") for link in page.links)
    pictures = [link for link in page.links if link.startswith("data:")]
    assert len(pictures) == 37 and max(map(len, pictures)) < 4100


def test_odd_labels_and_sentences_are_shown_as_they_are_and_nothing_else(tmp_path: Path) -> None:
    broken = {"code": "P007", "sentence": f"P007: </td></table><img src=x onerror=alert(1)> {NASTY}"}
    write(tmp_path / "failed/a", record(NASTY, "failed", "do not use", failure=broken, files={"a b?#.html": {}}))
    with claim(tmp_path, "a", "sub-<b>x</b>", now='{"title": "<i>mask</i>", "stage": "", "since": 1}', held=True):
        text = summarise(tmp_path).read_text()
    page = Reader(text)
    assert NASTY in page.text and "<img src=x onerror" in page.text and "<b>x</b>" in page.text
    assert not {"script", "b"} & set(page.tags) and "failed/a/a%20b%3F%23.html" in page.links
    assert 'http-equiv="refresh"' in text


def test_an_empty_output_has_a_page_too(tmp_path: Path) -> None:
    page = Reader(summarise(tmp_path / "new").read_text())
    assert "No scan has ended yet" in page.text
    assert "summary.html" in (tmp_path / "new/.bidsignore").read_text().split()


def test_a_report_without_pictures_has_no_thumbnail(tmp_path: Path) -> None:
    make(tmp_path, 20, picture=None)
    assert "data:image" not in summarise(tmp_path).read_text()


def test_the_thumbnail_is_the_map_of_a_true_report(tmp_path: Path) -> None:
    text = write_report(scan(tmp_path / "work"), "sub-a", parse({}))
    (tmp_path / "a.html").write_text(text)
    titles = [title for _, title in FIGURE.findall(text[text.index('class="glance"') : text.index("<nav")])]
    assert len(titles) > 2 and any(title.startswith("χ") for title in titles)
    (tmp_path / "b.html").write_text(re.sub(r"<figcaption>χ", "<figcaption>no map", text))
    map_, last = thumbnail(tmp_path / "a.html"), thumbnail(tmp_path / "b.html")
    assert 100 < len(map_) < 4100 and 100 < len(last) < 4100 and map_ != last
    assert thumbnail(tmp_path / "absent.html") == ""


def test_a_page_that_cannot_be_written_is_coded_and_stops_nothing(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "no space")

    summarise(output)
    write(output / "sub-new", record("sub-new"))
    monkeypatch.setattr("pipeline.publish.swap.write", full)
    with pytest.raises(ChironError, match="S001"):
        summarise(output)
    Page(output).renew()
    assert [path.name for path in (output / ".chiron").glob("summary*")] == []


def test_the_page_is_renewed_in_a_small_share_of_the_time(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = [100.0], []

    def write_slowly(*_: Any) -> None:
        written.append(clock[0])
        clock[0] += 0.3

    monkeypatch.setattr("flows.night.summary.summarise", write_slowly)
    monkeypatch.setattr("flows.night.summary.time.monotonic", lambda: clock[0])
    page = Page(output)
    for _ in range(1000):
        page.renew()
        clock[0] += 0.1
    assert 0.3 * len(written) < 0.05 * (clock[0] - 100) and len(written) > 5


def test_one_odd_scan_hides_no_other(output: Path) -> None:
    write(output / "sub-odd", record("sub-odd", verdict="check", stages=[{"seconds": 5000.0}]))
    chart = next(strip.svg for strip in strips(look(output).entries) if strip.title.startswith("Time"))
    heights = [float(y) for y in re.findall(r"M\d+ ([\d.]+)h0", chart)]
    assert len(heights) == 34 and max(heights) - min(heights) > 10
    assert "sub-odd: 5e+03" in chart


@pytest.mark.parametrize("hours", [0.2, 1, 9, 40, 900, 9000])
def test_the_time_axis_has_few_round_moments(hours: float) -> None:
    found = moments(START, START + 3600 * hours)
    assert 2 <= len(found) <= 8 and all(START <= t <= START + 3600 * hours for t, _ in found)
    days = [word for _, word in found if ":" not in word]
    assert len(set(days)) == len(days) and (days or hours < 24)


def test_of_a_thousand_scans_each_manifest_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 1000)
    folders, read = list[Path](), pipeline.ledger.read

    def counted(folder: Path) -> Any:
        folders.append(folder)
        return read(folder)

    monkeypatch.setattr(pipeline.ledger, "read", counted)
    page = summarise(tmp_path)
    assert page.stat().st_size < 1_500_000 and 1000 <= len(folders) == len(set(folders))


@contextmanager
def webhook(answer: int = 200, headers: dict[str, str] | None = None) -> Iterator[tuple[str, list[Any]]]:
    """A server on this machine that keeps what it is sent."""
    heard: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append((self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(answer if len(heard) < 2 else 200)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", heard
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def mail_server(starttls: bool = False) -> Iterator[tuple[str, list[str]]]:
    """The least of an SMTP server; it offers encryption where asked to, but cannot do it."""
    heard: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(text: str) -> None:
            writer.write(f"{text}\r\n".encode())
            await writer.drain()

        await say("220 here")
        while line := (await reader.readline()).decode():
            heard.append(line)
            word = line.split()[0].upper()
            if word == "EHLO":
                await say("250-here\r\n250 STARTTLS" if starttls else "250 here")
            elif word == "STARTTLS":
                await say("454 not now")
            elif word == "DATA":
                await say("354 go on")
                while (line := (await reader.readline()).decode()) != ".\r\n":
                    heard.append(line)
                await say("250 done")
            else:
                await say("221 bye" if word == "QUIT" else "250 done")
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Notify of a night in which a scan with a sentinel failed."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(telling, "PAUSE_S", 0.05)
    broken = record(f"{SENTINEL}_ses-1", "failed", "do not use", failure=failure("P007", f"a mask of {SENTINEL}"))
    write(tmp_path / "failed/a", broken)
    write(tmp_path / "sub-b", record(f"{SENTINEL}_ses-2"))

    def tell(**site: str) -> None:
        notify(Site(tmp_path / "in", tmp_path, **site), counts(tmp_path))  # type: ignore[arg-type]

    return tell


def test_nothing_is_sent_where_nothing_is_set_up(told: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a connection"))
    told()


def test_the_webhook_is_told_counts_and_codes_and_no_label(told: Callable[..., None]) -> None:
    with webhook() as (url, heard):
        told(webhook=url)
    ((kind, body),) = heard
    assert kind == "application/json" and SENTINEL.encode() not in body
    said = json.loads(body)
    assert said["counts"]["failed"] == {"P007": 1} and said["text"] == "Chiron: 2 scans: 1 usable, 1 failed."


def test_a_webhook_that_fails_once_is_told_again(told: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with webhook(answer=500) as (url, heard):
        told(webhook=url)
    assert len(heard) == 2 and not capsys.readouterr().err


def test_a_redirect_is_not_followed(told: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with webhook() as (elsewhere, there), webhook(302, {"Location": elsewhere}) as (url, heard):
        told(webhook=url)
    assert not there and len(heard) == 2, "asked twice, and never led away"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "nonsense", "http://127.0.0.1:1/secret"])
def test_a_webhook_that_cannot_be_reached_is_said_without_its_address(
    told: Callable[..., None], capsys: pytest.CaptureFixture[str], url: str
) -> None:
    told(webhook=url)
    said = capsys.readouterr().err
    assert said.startswith("The webhook was not told") and "secret" not in said and "passwd" not in said


def test_78_an_endpoint_that_never_answers_is_given_up(
    told: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "ANSWER_S", 0.2)
    monkeypatch.setattr(telling, "LIMIT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        told(webhook=f"http://127.0.0.1:{port}/", mail_host=f"127.0.0.1:{port}", mail_to="a@b.example")
    said = capsys.readouterr().err
    assert "The webhook was not told" in said and "The mail was not told" in said


def test_a_server_that_answers_byte_by_byte_is_left_alone(
    told: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "LIMIT_S", 0.5)
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        with suppress(OSError), server.accept()[0] as line:
            while not over.wait(0.05):
                line.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        told(webhook=f"http://127.0.0.1:{server.getsockname()[1]}/")
        over.set()
        thread.join()
    assert "no answer in time" in capsys.readouterr().err


def test_the_limits_keep_their_promise() -> None:
    assert telling.LIMIT_S <= 10 and 2 * telling.ANSWER_S + telling.PAUSE_S <= telling.LIMIT_S


def test_mail_is_plain_text_of_counts_and_codes(told: Callable[..., None]) -> None:
    with mail_server() as (host, heard):
        told(mail_host=host, mail_to="night@hospital.example, b@hospital.example", mail_from="chiron@hospital.example")
    said = "".join(heard)
    assert said.count("rcpt TO:") == 2 and "Subject: Chiron: 2 scans: 1 usable, 1 failed" in said
    assert "P007" in said and "Content-Type: text/plain" in said and SENTINEL not in said


def test_encryption_is_asked_for_where_it_is_offered(
    told: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with mail_server(starttls=True) as (host, heard):
        told(mail_host=host, mail_to="night@hospital.example")
    assert "STARTTLS\r\n" in heard and not any(line.startswith("DATA") for line in heard)
    assert "The mail was not told" in capsys.readouterr().err


def test_an_address_with_a_line_break_is_refused(told: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with mail_server() as (host, heard):
        told(mail_host=host, mail_to="a@b.example\nBcc: c@d.example")
    assert not heard and "The mail was not told" in capsys.readouterr().err
