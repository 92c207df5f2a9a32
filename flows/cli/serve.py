"""`serve`, `deploy`, `worker`: exports worked on as they arrive, on one machine or on several."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import show
from flows.cli.options import Config, Device, Input, Labels, Method, Output, Set, TimeLimit, Workers
from pipeline.errors import ChironError
from pipeline.names import meant

if TYPE_CHECKING:
    from flows.deploy import Times
    from flows.site import Site

Every = Annotated[str, typer.Option(metavar="SPAN", help="How often to look for what has arrived: 90s, 5m, 1h.")]
At = Annotated[
    str, typer.Option(metavar="TIME", help="When to work on all that has no result: 02:00, or five fields of cron.")
]
Key = Annotated[Path | None, typer.Option(help="Key of the pseudonyms; else this user's own.")]
Quiet = Annotated[float, typer.Option(min=1, help="Seconds without a change after which a study is taken.")]
Patience = Annotated[float, typer.Option(min=1, help="Seconds after which an incomplete study is set aside.")]
Keep = Annotated[float, typer.Option(min=1, help="Days that old versions and Prefect's history are kept.")]
Webhook = Annotated[str, typer.Option(metavar="URL", help="Told counts and codes after each batch.")]
MailTo = Annotated[str, typer.Option(metavar="ADDRESS", help="Told the same by mail.")]
MailFrom = Annotated[str, typer.Option(metavar="ADDRESS", help="Whose mail that is.")]
MailHost = Annotated[str, typer.Option(metavar="HOST", help="Server that takes the mail.")]


def serve(
    input: Input,
    output: Output,
    port: Annotated[int, typer.Option(min=1024, max=65535, help="Of Prefect's page, on this machine only.")] = 4200,
    every: Every = "5m",
    at: At = "",
    method: Method = None,
    device: Device = None,
    config: Config = None,
    set: Set = None,
    workers: Workers = 0,
    key: Key = None,
    labels: Labels = None,
    quiet: Quiet = 120,
    patience: Patience = 3600,
    keep_days: Keep = 30,
    time_limit: TimeLimit = 7200,
    webhook: Webhook = "",
    mail_to: MailTo = "",
    mail_from: MailFrom = "",
    mail_host: MailHost = "",
) -> None:
    """Watch a folder of exports and reconstruct what arrives, until interrupted: all of it on this machine.

    Starts Prefect's server, one worker for each card and one for the rest, and starts again what dies. Ctrl-C or a
    termination signal ends all of it within half a minute; scans under way continue at the next start.

    Example: chiron serve /data/export /data/qsm --every 5m --at 02:00
    """
    from flows.serve import serve as run

    site = _site(
        input,
        output,
        _settings(config, set, method, device),
        workers=workers,
        key_file=key,
        labels_file=labels,
        quiet_s=quiet,
        patience_s=patience,
        keep_days=keep_days,
        time_limit_s=time_limit,
        webhook=webhook,
        mail_to=mail_to,
        mail_from=mail_from,
        mail_host=mail_host,
    )
    run(site, _times(every, at), port, show.say)


def deploy(
    input: Input,
    output: Output,
    cards: Annotated[int, typer.Option(min=0, help="Runs at once in the gpu pool; 0 is one for each worker.")] = 0,
    every: Every = "5m",
    at: At = "",
    method: Method = None,
    device: Device = None,
    config: Config = None,
    set: Set = None,
    workers: Workers = 0,
    key: Key = None,
    labels: Labels = None,
    quiet: Quiet = 120,
    patience: Patience = 3600,
    keep_days: Keep = 30,
    time_limit: TimeLimit = 7200,
    webhook: Webhook = "",
    mail_to: MailTo = "",
    mail_from: MailFrom = "",
    mail_host: MailHost = "",
) -> None:
    """Make the same deployments on the Prefect server at PREFECT_API_URL; `chiron worker` then does the work.

    Given again with other times, it changes them. OUTPUT, and INPUT, are folders that all the machines share.

    Example: PREFECT_API_URL=http://server:4200/api chiron deploy /data/export /data/qsm --every 10m
    """
    from flows.deploy import deploy as put
    from flows.engine import REMOTE_S, wait_for
    from flows.engine import quiet as hush
    from pipeline.publish import prepare

    site = _site(
        input,
        output,
        _settings(config, set, method, device),
        workers=workers,
        key_file=key,
        labels_file=labels,
        quiet_s=quiet,
        patience_s=patience,
        keep_days=keep_days,
        time_limit_s=time_limit,
        webhook=webhook,
        mail_to=mail_to,
        mail_from=mail_from,
        mail_host=mail_host,
    )
    times = _times(every, at)
    wait_for(_server(), REMOTE_S)
    prepare(site.output)
    site.save()
    hush()
    for name in put(times, cards or None):
        print(name)


def worker(
    output: Output,
    pool: Annotated[str, typer.Option(help="gpu or cpu.")] = "gpu",
    card: Annotated[int | None, typer.Option(min=0, help="The only card to use; one worker for each.")] = None,
    input: Annotated[
        Path | None, typer.Option(help="Where the site's input lies on this machine, if elsewhere.")
    ] = None,
) -> None:
    """Do what is asked of a pool on this machine, until interrupted.

    Prefect is found at PREFECT_API_URL, with the password in PREFECT_API_AUTH_STRING.

    Example: PREFECT_API_URL=http://server:4200/api chiron worker /data/qsm --pool gpu --card 0
    """
    from flows.engine import REMOTE_S, wait_for
    from flows.pools import POOLS
    from flows.serve.worker import work_for
    from flows.site import INPUT_VARIABLE, OUTPUT_VARIABLE, Site

    pool = meant(pool, POOLS, "pool")
    os.environ[OUTPUT_VARIABLE] = str(output.absolute())
    if input:
        os.environ[INPUT_VARIABLE] = str(input.absolute())
    Site.here()
    wait_for(_server(), REMOTE_S)
    work_for(pool, card)


def _settings(config: Path | None, words: list[str] | None, method: str | None, device: str | None) -> dict[str, Any]:
    from pipeline import settings

    loaded = settings.load(config, words or [], method=method, device=device)
    plain: dict[str, Any] = loaded.model_dump(mode="json")
    return plain


def _site(input: Path, output: Path, settings: dict[str, Any], **more: Any) -> Site:
    """S003 where the input cannot be read, S002 where the two are not apart, X002 for an unfit key or table."""
    from flows.batch import apart
    from flows.site import Site
    from pipeline.find.listing import check_readable
    from pipeline.identity import load_labels
    from pipeline.publish.key import key_of

    input, output = input.absolute(), output.absolute()
    check_readable(input)
    apart(input, output)
    key, labels = more.pop("key_file"), more.pop("labels_file")
    key_of(output, key)
    if labels:
        load_labels(labels)
    files: dict[str, Any] = {
        "key_file": str(key.absolute()) if key else "",
        "labels_file": str(labels.absolute()) if labels else "",
    }
    return Site(input, output, settings, **files, **more)


def _times(every: str, at: str) -> Times:
    from flows.deploy import Times, cron, seconds

    return Times(intake_s=seconds(every), batch=cron(at))


def _server() -> str:
    """R007 where none is named."""
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        raise ChironError("R007", "no server in $PREFECT_API_URL", "its address", "Set it, or use `chiron serve`.")
    return url
