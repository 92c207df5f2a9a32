"""Counts of a night -> a word by webhook and by mail to whoever the site names. Counts and codes only: no label leaves.

Being told is a courtesy: what cannot be delivered within seconds is said on standard error, and nothing is raised.
"""

from __future__ import annotations

import json
import smtplib
import sys
import threading
import time
from collections.abc import Callable
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from flows.night.counting import Counts, causes, headline

if TYPE_CHECKING:
    from flows.site import Site

ANSWER_S = 4.0  # that a server may take to answer
PAUSE_S = 1.0  # before the one retry
LIMIT_S = 10.0  # for everything, names looked up and answers that come byte by byte included


def notify(site: Site, counts: Counts) -> None:
    """Post the counts to the site's webhook and mail them, where these are set up; takes `LIMIT_S` at most."""
    ways: dict[str, Callable[[], None]] = {}
    if site.webhook:
        ways["webhook"] = lambda: _post(site.webhook, counts)
    if site.mail_host and site.mail_to:
        ways["mail"] = lambda: _mail(site, counts)
    failures: dict[str, str] = {}
    threads = {
        way: threading.Thread(target=_try, args=(way, send, failures), daemon=True) for way, send in ways.items()
    }
    for thread in threads.values():
        thread.start()
    until = time.monotonic() + LIMIT_S
    for way, thread in threads.items():
        thread.join(max(0.0, until - time.monotonic()))
        failure = "no answer in time" if thread.is_alive() else failures.get(way)
        if failure:
            print(f"The {way} was not told of the batch: {failure}.", file=sys.stderr)


def message(counts: Counts) -> dict[str, Any]:
    """What the webhook is sent: a sentence, which chat services show, and the counts."""
    return {"text": f"Chiron: {headline(counts)}.", "counts": counts}


def _try(way: str, send: Callable[[], None], failures: dict[str, str]) -> None:
    """Send, and once more where that fails; the reason is named by its kind, for an address may be a secret."""
    for last in (False, True):
        try:
            send()
            failures.pop(way, None)
            return
        except Exception as error:  # a courtesy never harms: whatever it is, it is said
            status = getattr(error, "code", None) or getattr(error, "smtp_code", "")
            failures[way] = f"{type(error).__name__} {status}".strip()
        if not last:
            time.sleep(PAUSE_S)


class _NoRedirect(HTTPRedirectHandler):
    """A webhook that points elsewhere is not followed: the counts go where the site said, or nowhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(url: str, counts: Counts) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("neither http nor https")
    body = json.dumps(message(counts)).encode()
    request = Request(url, body, {"Content-Type": "application/json", "User-Agent": "Chiron"})
    build_opener(_NoRedirect).open(request, timeout=ANSWER_S).close()


def _mail(site: Site, counts: Counts) -> None:
    """Plain text; encrypted where the server offers it, with any certificate, for the other choice is in the clear."""
    mail = EmailMessage()
    mail["Subject"] = f"Chiron: {headline(counts)}"
    mail["From"], mail["To"] = site.mail_from or site.mail_to, site.mail_to
    lines = [f"{code}  {number:5d}  {what}. {todo}" for code, number, what, todo in causes(counts)]
    mail.set_content("\n".join([f"{headline(counts)}.", "", *lines]))
    host, _, port = site.mail_host.partition(":")
    with smtplib.SMTP(host, int(port or 25), timeout=ANSWER_S) as server:
        server.ehlo()
        if server.has_extn("starttls"):
            server.starttls()
        server.send_message(mail)
