"""The container, without an engine: what the composition promises of each service, and what the image is made by."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import stat
import subprocess
import sys
import time
import tomllib
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import distributions, metadata, requires
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import typer
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement

from pipeline import __version__
from pipeline.identity import load_key

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
RECIPE = (DOCKER / "Dockerfile").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class Loader(yaml.SafeLoader):
    """Knows the one tag of compose files that we use."""


Loader.add_constructor("!reset", lambda loader, node: None)


def compose(name: str = "compose.yaml", **given: str) -> dict[str, Any]:
    """The composition with its variables filled in as compose does it: given, else the default."""

    def value(found: re.Match[str]) -> str:
        variable, sign, rest = found.groups()
        assert variable in given or sign == "-", f"{variable} has neither a value nor a default"
        return given.get(variable, rest)

    return yaml.load(VARIABLE.sub(value, (DOCKER / name).read_text()), Loader)


COMPOSED = compose(INPUT="/data/export", OUTPUT="/data/qsm")
SERVICES: dict[str, dict[str, Any]] = COMPOSED["services"]
OURS = sorted(name for name in SERVICES if name != "database")
WORKING = ["deploy", "run", "worker-cpu", "worker-gpu", "worker-gpu-1"]
CARDS = {"run": "0", "worker-gpu": "0", "worker-gpu-1": "1"}
LASTING = ["database", "server", "worker-cpu", "worker-gpu", "worker-gpu-1"]


def environment(service: str) -> dict[str, str]:
    return SERVICES[service].get("environment", {})


def targets(service: str) -> dict[str, str]:
    """What the files in /run/secrets of a service are called -> which secret each is."""
    given = SERVICES[service].get("secrets", [])
    return {s: s for s in given if isinstance(s, str)} | {
        s["target"]: s["source"] for s in given if isinstance(s, dict)
    }


def image_environment() -> dict[str, str]:
    return dict(line.split("=", 1) for line in re.findall(r"^ENV (.*)$", RECIPE, re.MULTILINE))


def test_all_services_are_there() -> None:
    assert set(SERVICES) == {"database", "server", *WORKING}
    assert {name for name, told in SERVICES.items() if "profiles" in told} == {"run", "worker-gpu-1"}


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_service_is_closed(service: str) -> None:
    told = SERVICES[service]
    assert told["read_only"] is True
    assert told["cap_drop"] == ["ALL"] and "cap_add" not in told
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "ipc", "userns_mode", "devices"} & set(told)
    assert told["user"].split(":")[0] not in ("", "0", "root")
    assert any(folder.startswith("/tmp") for folder in told["tmpfs"])
    assert told["pids_limit"] and told["mem_limit"] and told["ulimits"] == {"core": 0}
    assert told["logging"]["options"].keys() == {"max-size", "max-file"}
    assert not any("docker.sock" in str(volume) for volume in told.get("volumes", []))


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_service_reaches_nothing_beyond(service: str) -> None:
    told = SERVICES[service]
    if service == "run":
        assert told["network_mode"] == "none" and "networks" not in told
        return
    assert "network_mode" not in told and "extra_hosts" not in told
    assert told["networks"] == (["inside", "door"] if service == "server" else ["inside"])
    assert ("ports" in told) == (service == "server")


def test_the_only_port_is_on_the_loopback() -> None:
    assert SERVICES["server"]["ports"] == ["127.0.0.1:4200:4200"]
    assert COMPOSED["networks"]["inside"] == {"internal": True}
    assert COMPOSED["networks"]["door"]["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    assert SERVICES["server"]["dns"] == ["127.0.0.1"]


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_no_secret_is_in_an_environment(service: str) -> None:
    for name, value in environment(service).items():
        assert name.endswith("_FILE") or not re.search("PASSWORD|AUTH|TOKEN|SECRET|KEY", name), name
        assert not name.endswith("_FILE") or value.removeprefix("/run/secrets/") in targets(service)
        assert not re.search(r"//[^/]*@", value), f"{name} holds a password"
    assert set(targets(service).values()) <= set(COMPOSED["secrets"])


def test_secrets_are_files_that_the_script_makes() -> None:
    made = set(re.findall(r'"\$folder/([\w.]+)" \]', (DOCKER / "secrets.sh").read_text()))
    assert {each["file"].removeprefix("./secrets/") for each in COMPOSED["secrets"].values()} == made
    assert all(each.keys() == {"file"} for each in COMPOSED["secrets"].values())
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/docker/secrets/" in ignored and "docker/secrets" in (DOCKER / "Dockerfile.dockerignore").read_text()


@pytest.mark.parametrize("service", WORKING)
def test_inputs_are_read_only_and_the_key_is_a_secret(service: str) -> None:
    mounts = dict(volume.split(":", 1) for volume in SERVICES[service]["volumes"])
    assert mounts == {"/data/export": "/input:ro", "/data/qsm": "/output", "locks": "/locks"}
    assert environment(service)["CHIRON_KEY_FILE"] == "/run/secrets/pseudonym.key"
    assert environment(service)["CHIRON_LOCKS"] == "/locks"
    assert targets(service)["pseudonym.key"] == "key"


@pytest.mark.parametrize("service", OURS)
def test_a_service_is_of_this_version(service: str) -> None:
    assert SERVICES[service]["image"] == f"chiron:{__version__}"
    assert f'org.opencontainers.image.version="{__version__}"' in RECIPE


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_images_are_pinned(service: str) -> None:
    assert re.search(r":\d+\.\d+", SERVICES[service]["image"])
    assert re.search(r"^ARG BASE=python:3\.11\.\d+-\S+$", RECIPE, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", RECIPE, re.MULTILINE)) == {"${BASE}"}
    assert not re.search(r"@sha256:[0-9a-f]", RECIPE), "a digest that nobody here has verified"


def test_a_gpu_is_reserved_where_it_computes() -> None:
    found = {}
    for name, told in SERVICES.items():
        if "deploy" in told:
            (device,) = told["deploy"]["resources"]["reservations"]["devices"]
            assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
            (found[name],) = device["device_ids"]
    assert found == CARDS
    without = compose("compose.cpu.yaml")["services"]
    assert without == {name: {"deploy": None} for name in CARDS if name != "worker-gpu-1"}


def test_services_last_and_wait_for_each_other() -> None:
    for name in SERVICES:
        told = SERVICES[name]
        assert (told["restart"] == "unless-stopped") == (name in LASTING)
        assert ("healthcheck" in told) == (name in LASTING)
        assert "disable" not in told.get("healthcheck", {})
        for before, when in told.get("depends_on", {}).items():
            ends = before not in LASTING
            assert when["condition"] == ("service_completed_successfully" if ends else "service_healthy")
    assert "HEALTHCHECK" in RECIPE and 'CMD ["chiron", "doctor"]' in RECIPE


@pytest.mark.parametrize("service", OURS)
def test_commands_are_ours(service: str) -> None:
    from flows.cli import app

    words = SERVICES[service]["command"]
    if service == "server":
        assert SERVICES[service]["entrypoint"] == ["tini", "--", "with-secrets", "prefect"]
        assert words == ["server", "start"]
        return
    assert "entrypoint" not in SERVICES[service]
    group = typer.main.get_command(app)
    group.commands[words[0]].make_context(words[0], words[1:])  # type: ignore[attr-defined]
    checked = SERVICES[service].get("healthcheck", {}).get("test", ["CMD", "chiron", "doctor"])
    assert checked[:2] == ["CMD", "chiron"]
    group.commands[checked[2]].make_context(checked[2], checked[3:])  # type: ignore[attr-defined]


def test_every_setting_of_prefect_is_one() -> None:
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_settings_fields

    known = set(_get_settings_fields(Settings))
    said = [*image_environment(), *(name for s in SERVICES for name in [*environment(s), *targets(s)])]
    ours = {name for name in said if name.startswith("PREFECT_")}
    assert len(ours) > 15 and ours <= known


def test_the_server_is_quiet_and_asks_for_a_password(tmp_path: Path) -> None:
    """Prefect itself, with the service's environment and secrets, says what it understood."""
    for target in targets("server"):
        (tmp_path / target).write_text(f"chiron:{target.lower()}\n")
    ask = """if True:
        from prefect.settings import get_current_settings
        from prefect._internal.analytics.enabled import is_telemetry_enabled
        s = get_current_settings()
        assert s.server.api.auth_string.get_secret_value() == "chiron:prefect_server_api_auth_string"
        assert s.server.database.connection_url.get_secret_value() == (
            "postgresql+asyncpg://chiron:chiron%3Aprefect_server_database_password@database:5432/chiron")
        assert s.server.api.csrf_protection_enabled and s.client.csrf_support_enabled
        assert s.server.api.cors_allowed_origins == "http://127.0.0.1:4200"
        assert s.server.ui.api_url == "http://127.0.0.1:4200/api" and s.server.ui.static_directory.startswith("/tmp")
        assert str(s.home).startswith("/tmp")
        assert s.server.services.scheduler.enabled and s.server.services.late_runs.enabled
        assert s.server.services.db_vacuum.enabled and s.server.services.db_vacuum.retention_period.days == 30
        assert not (s.server.analytics_enabled or s.server.ui.show_promotional_content or is_telemetry_enabled())
        assert not (s.cloud.enable_orchestration_telemetry or s.telemetry.enable_resource_metrics)
        """
    words = ["sh", str(DOCKER / "with-secrets"), sys.executable, "-c", ask]
    inside = image_environment() | environment("server") | {"PATH": os.environ["PATH"], "SECRETS": str(tmp_path)}
    done = subprocess.run(words, env=inside, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_secrets_reach_the_command_alone(tmp_path: Path) -> None:
    secret = 'chiron:it\'s $(touch x) "quoted" *'
    (tmp_path / "PREFECT_API_AUTH_STRING").write_text(secret + "\n")
    (tmp_path / "pseudonym.key").write_bytes(b"\x00\xff")
    show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    told = subprocess.run(
        ["sh", DOCKER / "with-secrets", *show], env={"SECRETS": str(tmp_path)}, capture_output=True, check=True
    ).stdout
    assert json.loads(told)["PREFECT_API_AUTH_STRING"] == secret
    assert b"pseudonym" not in told


def test_made_secrets_are_kept_and_the_key_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    for _ in range(2):
        subprocess.run(["sh", DOCKER / "secrets.sh", folder, str(os.getuid())], check=True)
        made = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made
    assert set(made) == {"database", "server", "pseudonym.key"}
    assert load_key(folder / "pseudonym.key") == made["pseudonym.key"] and len(made["pseudonym.key"]) == 32
    assert re.fullmatch(rb"chiron:[0-9a-f]{48}\n", made["server"]) and len(made["database"]) == 49
    modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in made}
    assert modes == {"database": 0o444, "server": 0o444, "pseudonym.key": 0o400}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "its files are open to those who can enter it"


def test_the_image_holds_what_the_script_installs() -> None:
    lines = RECIPE.splitlines()
    assert lines.index("RUN docker/install.sh /opt/chiron") < lines.index("USER chiron")
    assert lines.index("USER chiron") < lines.index('ENTRYPOINT ["tini", "--", "with-secrets", "chiron"]')
    assert "pip install" not in RECIPE
    allowed = (DOCKER / "Dockerfile.dockerignore").read_text()
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists() and f"!{name.split('/')[0]}\n" in allowed, name
    for tool in ("cc", "gcc", "make"):
        assert f"! command -v {tool}" in RECIPE
    written = {"HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR", "PREFECT_HOME"}
    assert {name for name, value in image_environment().items() if value.startswith("/tmp")} == written


def lock() -> dict[str, str]:
    """Packages of the image by name, each with its version; every line has a hash."""
    found = {}
    for line in (DOCKER / "lock.txt").read_text().splitlines():
        if not line.startswith("#"):
            pin = re.fullmatch(r"([a-z0-9.-]+)==([\w.+]+) --hash=sha256:[0-9a-f]{64}", line)
            assert pin, line
            found[plain(pin[1])] = pin[2]
    return found


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_agrees_with_the_constraints() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned, locked = {plain(name): version for name, version in pins.items()}, lock()
    assert {name: locked[name] for name in locked if name in pinned} == {
        name: pinned[name] for name in locked if name in pinned
    }
    unpinned = {name for name in locked if name not in pinned and not name.startswith(("nvidia-", "cuda-"))}
    assert unpinned == {"triton", "setuptools"}, "only what torch brings with CUDA"


def test_the_lock_is_all_that_is_needed_and_no_more() -> None:
    needed, left = set[tuple[str, str]](), [("chiron-qsm", "")]
    while left:
        package, extra = left.pop()
        for requirement in map(Requirement, requires(package) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted = {(plain(requirement.name), each) for each in ("", *requirement.extras)} - needed
                needed |= wanted
                left += wanted
    names = {name for name, _ in needed}
    assert names <= set(lock())
    assert {name.split("-")[0] for name in set(lock()) - names} <= {"nvidia", "cuda", "triton"}, "CUDA is not here"


def test_the_script_installs_a_chiron_that_writes_nowhere(tmp_path: Path) -> None:
    """The everyday form: a wheel of this checkout, not editable, beside the packages that are here already."""
    done = install(tmp_path / "venv", BORROW=sys.executable, PYTHON=sys.executable)
    assert f"chiron {__version__}" in done and "network weights: dip" in done
    packages = next((tmp_path / "venv").glob("lib/python3*/site-packages"))
    assert next(packages.glob("models/weights/*.safetensors")).read_bytes() == (
        next((ROOT / "models" / "weights").glob("*.safetensors")).read_bytes()
    )
    assert not list(packages.glob("__editable__*"))


@pytest.mark.slow
def test_the_script_installs_everything_by_hash(tmp_path: Path) -> None:
    """The whole of it, as the image has it: some 3 GB from the package index, and then a demo."""
    done = install(tmp_path / "venv", PYTHON=sys.executable)
    assert "published" in done and "Prefect: answers" in done


def install(folder: Path, **given: str) -> str:
    done = subprocess.run(
        ["sh", DOCKER / "install.sh", folder], env={**os.environ, **given}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return done.stdout


def dependencies() -> dict[str, str]:
    """Direct dependencies as pyproject.toml has them, each with the comment beside it."""
    block = (ROOT / "pyproject.toml").read_text().split("\ndependencies = [")[1].split("\n]")[0]
    return {Requirement(need).name: why for need, why in re.findall(r'"([^"]+)",\s+# (.+)', block)}


def test_the_page_of_dependencies_is_true() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    rows = re.findall(r"^\| (\S+) \| (.+?) \| (\S+) \| (.+) \|$", page, re.MULTILINE)[1:]
    assert {name: why for name, why, _, _ in rows} == dependencies()
    for name, _, licence, keeper in rows:
        said = licence_of(name) if name != "dcm2niix" else "BSD"  # it says so in its text alone
        assert licence.split("-")[0] in said and keeper, name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["dependency-groups"]["dev"],
        *(n for g in project["project"]["optional-dependencies"].values() for n in g),
    ]
    assert all(Requirement(need).name in page for need in asked)


def test_the_page_of_dependencies_counts_right() -> None:
    page = " ".join((ROOT / "docs" / "dependencies.md").read_text().split())
    told = re.search(r"holds (\d+) packages: these (\d+), (\d+) that torch brings for CUDA .*? and (\d+) that", page)
    cuda = [name for name in lock() if name.startswith(("nvidia-", "cuda-", "triton"))]
    others = len(lock()) - len(dependencies()) - len(cuda)
    assert told and [int(n) for n in told.groups()] == [len(lock()), len(dependencies()), len(cuda), others]


def test_licences_that_ask_for_more_are_on_the_page() -> None:
    """Of every package of the image that is installed here too; CUDA's are not."""
    page = (ROOT / "docs" / "dependencies.md").read_text()
    strong = {name for name in lock() if installed(name) and re.search(r"\b(A|L)?GPL|\bMPL", licence_of(name))}
    assert {"pylibjpeg-libjpeg", "certifi"} <= strong
    assert {name for name in strong if name not in page} == set()


def licence_of(name: str) -> str:
    """What a package says of its licence in a word or two; a whole text tells of others' licences as well."""
    told = metadata(name)
    words = [told.get("License-Expression") or "", (told.get("License") or "")[:40]]
    return " ".join(words + [each for each in told.get_all("Classifier", []) if each.startswith("License")])


def installed(name: str) -> bool:
    return any(distributions(name=name))


def test_options_on_the_page_of_deployment_exist() -> None:
    from flows.cli import app

    page = (ROOT / "docs" / "deployment.md").read_text()
    group = typer.main.get_command(app)
    for name, words in re.findall(r"^(?:sudo )?chiron ([a-z]+) ([^#\n]*)", page, re.MULTILINE):
        group.commands[name].make_context(name, shlex.split(words))  # type: ignore[attr-defined]
    ours = {option for command in group.commands.values() for each in command.params for option in each.opts}  # type: ignore[attr-defined]
    others = {"--build", "--detach", "--profile", "--nonblock", "--rm"}
    named = {"OUTPUT", "INPUT", "SIGTERM", "TABLE", "PYTHONPATH", "LD_LIBRARY_PATH"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)) <= ours | others
    for variable in set(re.findall(r"`([A-Z_]{4,})`?=?", page)) - named:
        assert variable in (DOCKER / "compose.yaml").read_text() + (DOCKER / "install.sh").read_text(), variable


@pytest.mark.slow
def test_the_composed_services_work_together(tmp_path: Path) -> None:
    """Server, deployments and a worker as they are composed, but for SQLite, with this machine's folders and port."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    for folder in ("input", "output", "locks", "tmp", "secrets"):
        (tmp_path / folder).mkdir()
    subprocess.run(["sh", DOCKER / "secrets.sh", tmp_path / "made", str(os.getuid())], check=True)
    password = (tmp_path / "made" / "server").read_text().strip()
    with ExitStack() as running:
        running.enter_context(service("server", tmp_path, port))
        wait(lambda: answer(f"{url}/ready")[0] == 200)
        assert answer(f"{url}/flows/count", {})[0] in (401, 403)
        with service("deploy", tmp_path, port, "--every", "20s") as deploy:
            assert deploy.wait(120) == 0
        running.enter_context(service("worker-cpu", tmp_path, port))
        intake = {"flows": {"name": {"any_": ["intake"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
        wait(lambda: int(answer(f"{url}/flow_runs/count", intake, password)[1] or 0) > 0)
    assert (tmp_path / "output" / ".chiron" / "site.json").exists()


def service(name: str, folder: Path, port: int, *more: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """One service as a process, ended with the context; every path of the container lies in `folder`."""
    inside = {**image_environment(), **environment(name)}
    for place in ("/tmp", "/input", "/output", "/locks", "/run/secrets"):
        inside = {
            key: re.sub(f"^{place}(?=/|$)", f"{folder}/{Path(place).name}", value) for key, value in inside.items()
        }
    words = [word.replace("/input", f"{folder}/input").replace("/output", f"{folder}/output") for word in command(name)]
    inside = {
        key: re.sub(r"(//server:|^|127\.0\.0\.1:)4200\b", rf"\g<1>{port}", value) for key, value in inside.items()
    }
    inside = {
        key: value.replace("//server:", "//127.0.0.1:") for key, value in inside.items() if "DATABASE_" not in key
    }
    secrets = folder / "secrets" / name
    secrets.mkdir()
    for target, source in targets(name).items():
        made = folder / "made" / COMPOSED["secrets"][source]["file"].rpartition("/")[2]
        (secrets / target).symlink_to(made)
    inside |= {
        "CHIRON_KEY_FILE": str(secrets / "pseudonym.key"),
        "SECRETS": str(secrets),
        "TMPDIR": str(folder / "tmp"),
    }
    inside["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return ended(subprocess.Popen(["sh", DOCKER / "with-secrets", *words, *more], env=inside, cwd=folder / "tmp"))


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def command(name: str) -> list[str]:
    return ["prefect" if name == "server" else "chiron", *SERVICES[name]["command"]]


def answer(url: str, question: dict[str, Any] | None = None, password: str = "") -> tuple[int, str]:
    """Status and text, 0 where nobody answers; with the token that the server wants of who asks."""
    headers = {"Content-Type": "application/json", "Prefect-Csrf-Client": "test"}
    if password:
        headers["Authorization"] = "Basic " + b64encode(password.encode()).decode()
        base = url.partition("/api")[0] + "/api/csrf-token?client=test"
        with urlopen(Request(base, headers=headers), timeout=10) as reply:
            headers["Prefect-Csrf-Token"] = json.load(reply)["token"]
    data = None if question is None else json.dumps(question).encode()
    try:
        with urlopen(Request(url, data, headers), timeout=10) as reply:
            return reply.status, reply.read().decode()
    except HTTPError as refused:
        with refused:
            return refused.code, ""
    except OSError:
        return 0, ""


def wait(until: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
