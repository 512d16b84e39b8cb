"""The pins of the conda environments, of the lock and of the project agree."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from refine.feedback.registry import JUDGES, judge_module
from refine.provenance import code_files

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock() -> dict[str, str]:
    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            found = re.fullmatch(r"([\w.-]+)==([\w.]+)( ; .+)?", line)
            assert found, f"not a plain pin: {line}"
            pins[normal(found[1])] = found[2]
    return pins


def pins_of(environment: Path) -> dict[str, str]:
    conda = yaml.safe_load(environment.read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    return {normal(name): version for name, version in (pin.split("==") for pin in pip)}


def test_there_is_an_environment_for_each_kind_of_stage() -> None:
    assert [path.stem for path in ENVIRONMENTS] == ["llm", "prepare", "train"]


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_pins_agree_with_the_lock(path: Path) -> None:
    own = {"vllm"} if path.stem == "llm" else set()
    pins = pins_of(path)
    locked = lock()
    assert {name: pins[name] for name in pins.keys() - own} == {
        name: locked.get(name) for name in pins.keys() - own
    }


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environments_have_the_oldest_python_that_is_supported(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    assert f"python={oldest}" in yaml.safe_load(path.read_text())["dependencies"]


def test_the_lock_has_all_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    locked = lock()
    for wanted in [*project["dependencies"], *(one for extra in extras for one in extra)]:
        name, _, version = wanted.partition("==")
        assert normal(name) in locked, wanted
        assert version in ("", locked[normal(name)]), wanted


def test_the_lock_brings_no_gpu_packages_and_names_no_index() -> None:
    assert not [name for name in lock() if name.startswith(("nvidia", "cuda", "triton"))]
    assert "://" not in (ROOT / "requirements.lock").read_text()


SCRIPTS = sorted((ROOT / "workflow/scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_environment_of_a_stage_has_what_its_code_imports(script: Path) -> None:
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    rule = re.search(rf"^rule {script.stem}:\n((?:    .*\n|\n)+)", rules, re.MULTILINE)
    assert rule, f"no rule is called like {script}"
    # Only the judge decides where prompts are answered.
    names = re.findall(r"envs/(\w+)\.yaml", rule[1]) or ["prepare"]
    for name in names:
        missing = third_party_imports(script) - pins_of(ROOT / f"envs/{name}.yaml").keys()
        assert not missing, f"envs/{name}.yaml"


def third_party_imports(script: Path) -> set[str]:
    modules = {judge_module(kind) for kind in JUDGES} if script.stem == "answer_prompts" else ()
    found = set()
    for path in code_files(script, ROOT / "src", modules):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"refine", "snakemake"}
