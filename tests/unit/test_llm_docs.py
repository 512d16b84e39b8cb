"""The settings that docs/llm.md shows and names are those of the configuration."""

import re
from pathlib import Path

import pytest
import yaml

from refine.config import extended, load, validate
from refine.overlays import merge

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/llm.md").read_text(encoding="utf-8")
CONFIG = load(ROOT / "config/config.yaml")
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: ", ".join(example["judges"]))
def test_the_examples_fit_the_configuration(example):
    config = merge(CONFIG, example)
    config = extended(config)
    validate(config, ROOT / "config/schema.yaml")


def test_every_setting_of_a_judge_is_explained():
    for kind in ("vllm", "openai"):
        for name in CONFIG["judges"][kind].keys() - {"kind"}:
            assert re.search(rf"`{name}[`:]|^ +{name}: ", TEXT, re.MULTILINE), f"{kind}.{name}"


def test_settings_of_sections_that_are_named_exist():
    named = re.findall(r"`(prompts|probe|refine|labels)\.(?!parquet)(\w+)[`:]", TEXT)
    assert len(named) > 8
    for section, name in named:
        assert name in CONFIG[section], f"{section}.{name}"


def test_vllm_is_installed_in_the_version_that_is_pinned():
    pins = yaml.safe_load((ROOT / "envs/llm.yaml").read_text(encoding="utf-8"))["dependencies"]
    (pin,) = (line for line in pins[-1]["pip"] if line.startswith("vllm=="))
    assert f"pip install {pin}\n" in TEXT
