"""The house itself: imports point one way, settings and codes are explained, documents say what is true."""

from __future__ import annotations

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.version import Version

import pipeline
from flows.demo import Simulated
from pipeline.errors import CATALOGUE
from pipeline.settings import Settings, sections

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("models", "pipeline", "flows")
SOURCES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
CODE = re.compile(r"[FGEPRMSX]\d{3}")


def imports(path: Path) -> Iterator[str]:
    """Names of the packages at the top of what a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)} imports relatively"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    floor = FLOORS.index(path.relative_to(ROOT).parts[0])
    assert not set(imports(path)) & set(FLOORS[floor + 1 :])
    if floor < FLOORS.index("flows"):
        assert "prefect" not in set(imports(path))


def test_models_need_nothing_but_tensors() -> None:
    allowed = {"torch", "numpy", "safetensors", "models", *sys.stdlib_module_names}
    for path in (ROOT / "models").rglob("*.py"):
        assert set(imports(path)) <= allowed, path.name


def test_pipeline_starts_without_prefect() -> None:
    code = "import sys, pipeline.recipe, pipeline.publish; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", SOURCES + sorted(Path(__file__).parent.glob("*.py")), ids=lambda p: p.name)
def test_files_stay_readable(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= (450 if path in SOURCES else 700)
    assert path.name == "__init__.py" or ast.get_docstring(tree), "the first line says what comes in and goes out"


def test_every_setting_says_what_it_means() -> None:
    for name, field in Settings.model_fields.items():
        if name not in sections():
            assert field.description, name
    for section, params in sections().items():
        for param in dataclasses.fields(params):
            assert param.metadata.get("help"), f"{section}.{param.name}"


def test_codes_in_use_are_in_the_catalogue() -> None:
    used = {code for path in SOURCES if path.name != "errors.py" for code in codes_in(path)}
    assert used <= CATALOGUE.keys()
    assert len(used) > 20


def codes_in(path: Path) -> set[str]:
    """Strings of a file that are a code and nothing else."""
    strings = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    return {text for text in strings if isinstance(text, str) and CODE.fullmatch(text)}


def test_every_code_says_what_to_do() -> None:
    for code, fault in CATALOGUE.items():
        assert CODE.fullmatch(code) and fault.what and fault.todo.endswith("."), code


def commands() -> set[str]:
    from flows.cli import app

    group = typer.main.get_command(app)
    return set(group.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "Makefile",
        "docs/methods.md",
        "docs/deployment.md",
        "docs/dependencies.md",
        "docker/Dockerfile",
    ],
)
def test_commands_in_documents_exist(document: str) -> None:
    named = set(re.findall(r"(?:`|^|bin/)chiron ([a-z]+)\b", (ROOT / document).read_text(), re.MULTILINE))
    assert named <= commands()
    targets = set(re.findall(r"^(?:`?)make ([a-z]+)\b", (ROOT / document).read_text(), re.MULTILINE))
    assert targets <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_remedies_name_commands_and_options_that_exist() -> None:
    from flows.cli import app

    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    options = {option for parameter in run.params for option in parameter.opts}
    for fault in CATALOGUE.values():
        assert set(re.findall(r"--[a-z][a-z0-9-]+", fault.todo)) <= options | {"--help"}
        assert set(re.findall(r"`chiron ([a-z]+)", fault.todo)) <= commands()


def test_every_exit_code_of_the_catalogue_is_in_the_readme() -> None:
    table = README.split("## Exit codes")[1].split("##")[0]
    told = {int(number) for number in re.findall(r"\| (\d+) \|", table)}
    assert {fault.exit for fault in CATALOGUE.values()} <= told


def test_the_pipeline_in_the_readme_runs(
    demo: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shutil.copytree(demo.export, tmp_path / "export")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})  # the block is ours
    label, _, rest = capsys.readouterr().out.partition(": ")
    assert label.startswith("sub-") and 0 < float(rest.removesuffix(" ppm\n")) < 1


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\[[^]]*\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_versions_agree() -> None:
    assert PROJECT["project"]["version"] == pipeline.__version__
    assert f"{pipeline.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {pin.name.lower(): Version(str(pin.specifier).removeprefix("==")) for pin in pins}


def test_constraints_meet_the_requirements() -> None:
    pins = constraints()
    wanted = [Requirement(r) for r in PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]]
    for requirement in wanted:
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement
    assert {"prefect", "fastapi", "sqlalchemy"} <= {r.name.lower() for r in wanted}
    assert (
        str(pins["prefect"]) == "3.8.8" and pins["fastapi"] < Version("0.151") and pins["sqlalchemy"] < Version("2.1")
    )


def test_constraints_name_no_host_and_no_build() -> None:
    for name in ("constraints.txt", "Makefile", "pyproject.toml", "docker/Dockerfile", ".ci/run"):
        assert not re.search(r"index-url|https?://|\+cpu|\+cu\d", (ROOT / name).read_text()), name


def test_ci_runs_what_a_person_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make check" in script.read_text() and "make test" in script.read_text()


CLOCKS = {"monotonic", "perf_counter", "time", "process_time"}
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_test_asserts_seconds(path: Path) -> None:
    """A busy machine is no fault: what is asserted is what happened, not how long it took."""
    tree = ast.parse(path.read_text())
    spans = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and is_span(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            names = {each.id for each in ast.walk(node.test) if isinstance(each, ast.Name)}
            assert not names & spans and not any(map(is_span, ast.walk(node.test))), f"{path.name}:{node.lineno}"


def is_span(node: ast.AST) -> bool:
    """Whether it is a clock's time minus another: seconds that something took."""
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and is_clock(node.left)


def is_clock(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS


def test_seconds_that_are_asserted_are_noticed(tmp_path: Path) -> None:
    for number, text in enumerate(
        (
            "began = time.monotonic()\nassert time.monotonic() - began < 5",
            "took = time.perf_counter() - began\nassert took < 5",
        )
    ):
        (tmp_path / f"{number}.py").write_text(text)
        with pytest.raises(AssertionError):
            test_no_test_asserts_seconds(tmp_path / f"{number}.py")
    (tmp_path / "fine.py").write_text("took = time.time() - began\nprint(took)\nassert time.monotonic() < deadline")
    test_no_test_asserts_seconds(tmp_path / "fine.py")
