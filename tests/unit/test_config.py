import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from refine import config as settings_of
from refine import overlays

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "config/schema.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    return settings_of.load(ROOT / "config/config.yaml")


def faults(config: dict[str, Any], **overlay: Any) -> list[str]:
    """The faults of a configuration with an overlay, without the heading."""
    merged = overlays.merge(config, overlay)
    try:
        merged = settings_of.extended(merged)
        settings_of.validate(merged, SCHEMA)
    except settings_of.ConfigError as error:
        heading, *lines = str(error).splitlines()
        assert heading == "The configuration has faults:"
        return [line.removeprefix("  - ") for line in lines]
    return []


def test_the_defaults_are_valid(config: dict[str, Any]) -> None:
    assert faults(config) == []


@pytest.mark.parametrize(
    ("overlay", "fault"),
    [
        ({"sede": [1]}, "sede: unknown key; did you mean 'seeds'?"),
        (
            {"model": {"learning_rat": 1}},
            "model.learning_rat: unknown key; did you mean 'learning_rate'?",
        ),
        (
            {"datasets": {"demo": {"mining": {"near_like": 1}}}},
            "datasets.demo.mining.near_like: unknown key; did you mean 'near_liked'?",
        ),
        (
            {"experiments": {"refine": {"sampling": {"reweigh": True}}}},
            "experiments.refine.sampling.reweigh: unknown key; did you mean 'reweight'?",
        ),
        (
            {"judges": {"random": {"yes_rat": 0.5}}},
            "judges.random.yes_rat: unknown key; did you mean 'yes_rate'?",
        ),
        (
            {"datasets": {"ml100k": {"judges": {"random": {"sed": 1}}}}},
            "datasets.ml100k.judges.random.sed: unknown key; did you mean 'seed'?",
        ),
        (
            {
                "datasets": {
                    "demo": {"sources": [{"at": "x", "files": {"rating": "x"}, "reader": "table"}]}
                }
            },
            "datasets.demo.sources.0.files.rating: unknown key; did you mean 'ratings'?",
        ),
        # How a run goes is no setting of a dataset: it would be a reason to run it again.
        (
            {"datasets": {"demo": {"training": {"checkpoint_minutes": 1}}}},
            "datasets.demo.training.checkpoint_minutes: unknown key; known are: epochs, patience, "
            "warmup_epochs",
        ),
        (
            {"sampling": {"normalisation": "softmx"}},
            "sampling.normalisation: 'softmx' is none of sum, softmax; did you mean 'softmax'?",
        ),
        ({"judge": "profil"}, "judge: there is no judge 'profil'; did you mean 'profile'?"),
        ({"headline": "refin"}, "headline: there is no experiment 'refin'; did you mean 'refine'?"),
        (
            {"experiments": {"mine": {"judge": "randm"}}},
            "experiments.mine.judge: there is no judge 'randm'; did you mean 'random'?",
        ),
        (
            {"datasets": {"demo": {"judge": "thresold"}}},
            "datasets.demo.judge: there is no judge 'thresold'; did you mean 'threshold'?",
        ),
        (
            {"datasets": {"demo": {"judges": {"al": {}}}}},
            "datasets.demo.judges: there is no judge 'al'; did you mean 'all'?",
        ),
        (
            {"datasets": {"demo": {"scored_judges": ["popularty"]}}},
            "datasets.demo.scored_judges: there is no judge 'popularty'; "
            "did you mean 'popularity'?",
        ),
        (
            {"refine": {"compare_with": ["randm"]}},
            "refine.compare_with: there is no judge 'randm'; did you mean 'random'?",
        ),
        (
            {"datasets": {"ml1m": {"refine": {"compare_with": ["profil"]}}}},
            "datasets.ml1m.refine.compare_with: there is no judge 'profil'; "
            "did you mean 'profile'?",
        ),
        (
            {"judges": {"vllm": {"modle": "x"}}},
            "judges.vllm.modle: unknown key; did you mean 'model'?",
        ),
        (
            {"judges": {"openai": {"server": "vlm"}}},
            "judges.openai.server: 'vlm' is none of openai, vllm, plain; did you mean 'vllm'?",
        ),
        (
            {"prompts": {"templates": {"nubmers": "x"}}},
            "prompts.templates.nubmers: unknown key; did you mean 'numbers'?",
        ),
        (
            {"judges": {"all": {"like": "releas"}}},
            "judges.all.like: there is no judge 'releas'; did you mean 'release'?",
        ),
    ],
)
def test_what_is_misspelt_is_named_with_the_nearest_known(
    config: dict[str, Any], overlay: dict[str, Any], fault: str
) -> None:
    assert faults(config, **overlay) == [fault]


@pytest.mark.parametrize(
    "overlay",
    [
        {"seeds": []},
        {"seeds": [1, 1]},
        {"seeds": [-1]},
        {"device": "gpu"},
        {"split": {"min_positives": 0}},
        {"split": {"test": 1.0}},
        {"model": {"learning_rate": 0}},
        {"training": {"epochs": 2.5}},
        {"model": {"layers": -1}},
        {"sampling": {"confirmed": -0.5}},
        {"evaluation": {"k": []}},
        {"evaluation": {"confidence": 1}},
        {"judges": {"strict": {"kind": "threshold"}}},
        {"judges": {"strict": {"kind": "threshold", "at_least": 6}}},
        {"judges": {"release": {"at_least": 3}}},
        {"judges": {"a/b": {"kind": "all"}}},
        {"judges": {"vllm": {"tensor_parallel_size": 0}}},
        {"judges": {"vllm": {"memory_share": 0}}},
        {"judges": {"vllm": {"price": {"token": 1}}}},
        {"judges": {"openai": {"url": "localhost:8000"}}},
        {"judges": {"openai": {"timeout": 0}}},
        {"datasets": {"demo": {"judges": {"vllm": {"strategy": "rank"}}}}},
        {"probe": {"min_auc": 55}},
        {"refine": {"max_undecided": 2}},
        {"refine": {"shards": 0}},
        {"experiments": {"mine": {"labels": {"threshold": 1}}}},
        {"experiments": {"a-vs-b": {}}},
        {"experiments": {"mine": {"split": {"seed": 1}}}},
        {"datasets": {"mine": {"title": "Mine", "judge": "profile"}}},
        {"datasets": {"demo": {"sources": [{"at": "x", "files": {"ratings": "x"}}]}}},
    ],
    ids=repr,
)
def test_values_out_of_bounds_are_refused(config: dict[str, Any], overlay: dict[str, Any]) -> None:
    assert len(faults(config, **overlay)) == 1


def test_a_section_must_be_whole(config: dict[str, Any]) -> None:
    del config["training"]["patience"]
    assert faults(config) == ["training: 'patience' is a required property"]


def test_all_faults_are_told_at_once(config: dict[str, Any]) -> None:
    found = faults(config, seed=1, training={"epoch": 1}, split={"test": 2})
    assert [fault.split(":")[0] for fault in found] == ["seed", "split.test", "training.epoch"]


def test_numbers_that_yaml_reads_as_text_are_explained(config: dict[str, Any]) -> None:
    (fault,) = faults(config, model={"learning_rate": yaml.safe_load("1e-3")})
    assert "model.learning_rate: '1e-3' is not of type 'number'" in fault
    assert "1.0e-3" in fault


@pytest.mark.parametrize("name", ["split", "compare", "release", "all"])
def test_an_experiment_may_not_take_the_folder_of_something_else(
    config: dict[str, Any], name: str
) -> None:
    (fault,) = faults(config, experiments={name: {}})
    assert fault.startswith(f"experiments.{name}: is the name of")


def test_a_judge_that_extends_another_has_what_it_does_not_say(config: dict[str, Any]) -> None:
    llama = {"extends": "vllm", "model": "llama", "speed": {"prompt": 9}}
    more = {"llama-score": {"extends": "llama", "strategy": "score"}, "llama": llama}
    assert faults(config, judges=more) == []
    judges = settings_of.extended(overlays.merge(config, {"judges": more}))["judges"]
    changed = {"model": "llama", "speed": {"prompt": 9, "answer": None}}
    assert judges["llama"] == config["judges"]["vllm"] | changed
    assert judges["llama-score"] == judges["llama"] | {"strategy": "score"}
    assert {name: judges[name] for name in config["judges"]} == config["judges"]


@pytest.mark.parametrize(
    ("judges", "fault"),
    [
        (
            {"a": {"extends": "vlm"}},
            "judges.a.extends: there is no judge 'vlm'; did you mean 'vllm'?",
        ),
        (
            {"a": {"extends": "b"}, "b": {"extends": "a"}},
            "judges.b.extends: a extends b extends a is a circle",
        ),
        ({"a": {"extends": "vllm", "modle": "x"}}, "judges.a.modle: unknown key"),
    ],
)
def test_a_judge_may_not_extend_just_anything(
    config: dict[str, Any], judges: dict[str, Any], fault: str
) -> None:
    (found,) = faults(config, judges=judges)
    assert found.startswith(fault)


def test_an_experiment_that_extends_another_has_what_it_does_not_say(
    config: dict[str, Any],
) -> None:
    mine = {"extends": "siren", "judge": None, "model": {"layers": 2}}
    other = {"extends": "mine", "model": {"name": "bpr-mf"}}
    assert faults(config, experiments={"mine": mine, "other": other}) == []
    merged = overlays.merge(config, {"experiments": {"mine": mine, "other": other}})
    experiments = settings_of.extended(merged)["experiments"]
    assert experiments["mine"] == {"judge": None, "model": {"name": "siren", "layers": 2}}
    # Hyperparameters are a model's own: another one has nothing of those below.
    assert experiments["other"] == {"judge": None, "model": {"name": "bpr-mf"}}


@pytest.mark.parametrize(
    ("experiments", "fault"),
    [
        ({"a": {"extends": "sirn"}}, "experiments.a.extends: there is no experiment 'sirn'; did"),
        ({"a": {"extends": "a"}}, "experiments.a.extends: a extends a is a circle"),
        ({"a": {"extend": "siren"}}, "experiments.a.extend: unknown key; did you mean 'extends'?"),
        ({"a": {"extends": ["siren"]}}, "experiments.a.extends: ['siren'] is not of type 'string'"),
        ({"a": None, "b": {"extends": "a"}}, "experiments.a: None is not of type 'object'"),
        ({"a": {"model": {"layers": 2, "negatives": 3}}}, "experiments.a.model.negatives: unknown"),
        ({"a": {"extends": "siren", "model": {"layrs": 2}}}, "experiments.a.model.layrs: unknown"),
        (
            {"a": {"model": {"name": "ease", "search": {"rigde": [1]}}}},
            "experiments.a.model.search",
        ),
    ],
)
def test_what_an_experiment_may_not_be(
    config: dict[str, Any], experiments: dict[str, Any], fault: str
) -> None:
    (found,) = faults(config, experiments=experiments)
    assert found.startswith(fault)


def test_sections_of_another_shape_are_refused(config: dict[str, Any]) -> None:
    for value in (None, ["refine"], "refine"):
        (found,) = faults(config, experiments=value)
        assert found.startswith("experiments: ")


def test_a_data_set_may_say_more_of_an_experiment(config: dict[str, Any]) -> None:
    said = {"datasets": {"demo": {"experiments": {"siren": {"model": {"layers": 2}}}}}}
    assert faults(config, **said) == []
    config = overlays.merge(config, said)
    assert settings_of.settings(config, "demo", "siren")["model"]["layers"] == 2
    assert "layers" not in settings_of.settings(config, "ml1m", "siren")["model"]
    for experiment, model, fault in (
        ("sirn", {}, ".experiments: there is no experiment 'sirn'; did you mean 'siren'?"),
        ("siren", {"layrs": 2}, ".experiments.siren.model.layrs: unknown key; did you mean"),
        ("siren", {"name": "ease"}, ".experiments.siren.model.name: the experiment names its"),
    ):
        overlay = {"demo": {"experiments": {experiment: {"model": model}}}}
        assert f"datasets.demo{fault}" in faults(config, datasets=overlay)[0]


def test_experiments_of_a_table_must_exist(config: dict[str, Any]) -> None:
    (found,) = faults(config, comparison=["sirn"])
    assert found.startswith("comparison: there is no experiment 'sirn'; did you mean 'siren'?")
    (found,) = faults(config, datasets={"demo": {"comparison": ["sirn"]}})
    assert found.startswith("datasets.demo.comparison: there is no experiment 'sirn'")


def test_the_headline_leads_its_table_once(config: dict[str, Any]) -> None:
    config |= {"comparison": ["ease", "refine", "lightgcn"], "headline": "lightgcn"}
    config = settings_of.extended(config)
    assert settings_of.compared_experiments(config, "demo") == ["lightgcn", "ease", "refine"]
    config["datasets"]["demo"]["comparison"] = ["ease"]
    assert settings_of.compared_experiments(config, "demo") == ["lightgcn", "ease"]


def test_a_table_under_several_rules_is_refused_before_anything_runs(
    config: dict[str, Any],
) -> None:
    other = {"experiments": {"ease": {"evaluation": {"mask": "train_positives"}}}}
    config = settings_of.extended(overlays.merge(config, other))
    with pytest.raises(settings_of.ConfigError, match=r"demo: comparison: ease and refine .*mask"):
        settings_of.compared_experiments(config, "demo")


def test_what_is_fitted_draws_nothing_and_runs_once(config: dict[str, Any]) -> None:
    config = settings_of.extended(config)
    fitted = {name for name in config["experiments"] if settings_of.is_fitted(config, name)}
    assert fitted >= {"most-popular", "item-knn", "ease", "ease-refined", "ease-graded"}
    assert not fitted & {"refine", "siren", "bpr-mf", "refine++"}
    assert settings_of.seeds_of(config, "demo", "ease") == [2024]


def test_only_models_that_draw_by_its_weights_are_reweighted(config: dict[str, Any]) -> None:
    config = settings_of.extended(config)

    def reweighted(experiment: str) -> bool:
        return bool(settings_of.settings(config, "demo", experiment)["sampling"]["reweight"])

    assert reweighted("refine")
    assert not any(map(reweighted, ("refine-without-rw", "siren", "refine++", "ease")))


def test_judges_may_not_copy_each_other_in_a_circle(config: dict[str, Any]) -> None:
    found = faults(config, judges={"all": {"like": "random"}, "random": {"like": "all"}})
    assert any("all like random like all is a circle" in fault for fault in found)


@pytest.mark.parametrize(
    ("argument", "setting"),
    [
        ("model", "model"),
        ("tokenizer", "model"),
        ("dtype", "dtype"),
        ("max_model_len", "context"),
        ("gpu_memory_utilization", "memory_share"),
    ],
)
def test_what_has_a_setting_is_not_given_to_the_engine_beside_it(
    config: dict[str, Any], argument: str, setting: str
) -> None:
    here = f"judges.vllm.engine.{argument}: set judges.vllm.{setting} in its place"
    engine = {"engine": {argument: 1, "max_num_seqs": 512}}
    assert faults(config, judges={"vllm": engine}) == [here]
    there = "datasets.demo.judges.vllm"
    assert faults(config, datasets={"demo": {"judges": {"vllm": engine}}}) == [
        f"{there}.engine.{argument}: set {there}.{setting} in its place"
    ]


def test_a_key_in_the_configuration_is_refused_and_not_repeated(config: dict[str, Any]) -> None:
    (fault,) = faults(config, judges={"openai": {"key": "sk-secret"}})
    assert fault.startswith("judges.openai.key: the name of an environment variable")
    assert "secret" not in fault


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"server": "plain"}, "strategy"),
        ({"server": "vllm"}, "tokenizer"),
        ({"server": "vllm", "tokenizer": "x"}, None),
        ({"server": "openai"}, None),
    ],
)
def test_scores_need_an_endpoint_that_tells_probabilities(
    config: dict[str, Any], settings: dict[str, Any], wrong: str | None
) -> None:
    found = faults(config, judges={"openai": {"strategy": "score"} | settings})
    assert [fault.partition(": ")[0] for fault in found] == (
        [f"judges.openai.{wrong}"] if wrong else []
    )
    assert faults(config, judges={"openai": {"strategy": "select"} | settings}) == []


def test_splits_must_leave_something_to_train_on(config: dict[str, Any]) -> None:
    assert "ml1m: split.validation and split.test leave nothing to train on" in faults(
        config, split={"validation": 0.5, "test": 0.5}
    )


def test_the_warm_up_of_what_is_run_may_not_outlast_the_training(config: dict[str, Any]) -> None:
    config = overlays.merge(
        config, {"experiments": {"refine": {"training": {"warmup_epochs": 2000}}}}
    )
    settings_of.require_warm_up_to_end(config, "demo", "lightgcn")
    # Where nothing is re-weighted nothing waits for the end of the warm-up, so it is cut.
    config["experiments"]["lightgcn"]["training"] = {"epochs": 10}
    settings_of.require_warm_up_to_end(config, "demo", "lightgcn")
    assert settings_of.settings(config, "demo", "lightgcn")["training"]["warmup_epochs"] == 10
    with pytest.raises(
        settings_of.ConfigError, match=r"demo, experiment refine: .* \(2000\) exceeds"
    ):
        settings_of.require_warm_up_to_end(config, "demo", "refine")


def test_overlays_lie_over_each_other_in_order(config: dict[str, Any]) -> None:
    config = overlays.merge(
        config,
        {
            "mining": {"near_liked": 1, "near_disliked": 1, "refresh": "once"},
            "datasets": {"demo": {"mining": {"near_liked": 2, "near_disliked": 2}}},
            "experiments": {"refine": {"mining": {"near_disliked": 3}}},
        },
    )
    mining = settings_of.settings(config, "demo", "refine")["mining"]
    assert (mining["refresh"], mining["near_liked"], mining["near_disliked"]) == ("once", 2, 3)
    assert settings_of.settings(config, "demo")["mining"]["near_disliked"] == 2
    assert settings_of.settings(config, "ml1m", "lightgcn")["mining"]["near_liked"] == 1


def test_settings_are_all_sections_and_nothing_else(config: dict[str, Any]) -> None:
    found = settings_of.settings(config, "ml100k", "refine")
    assert set(found) == {
        *("reading", "subset", "split", "prompts", "probe", "refine", "labels"),
        *("model", "training", "mining", "sampling", "evaluation"),
    }


def test_an_experiment_keeps_its_judge(config: dict[str, Any]) -> None:
    assert settings_of.judge_of(config, "ml100k", "refine") == "release"
    assert settings_of.judge_of(config, "ml1m", "refine") == "vllm"
    config["judge"] = "threshold"
    assert settings_of.judge_of(config, "ml100k", "refine") == "threshold"
    assert settings_of.judge_of(config, "ml100k", "judge-random") == "random"
    assert settings_of.judge_of(config, "ml100k", "lightgcn") == "at-least-4"


def test_a_data_set_overrides_a_judge_key_by_key(config: dict[str, Any]) -> None:
    assert overlays.judge_settings(config, "ml1m", "random")["like"] is None
    on_ml100k = overlays.judge_settings(config, "ml100k", "random")
    assert on_ml100k == config["judges"]["random"] | {"like": "release"}


def test_families_of_judges(config: dict[str, Any]) -> None:
    families = {name: settings_of.judge_family(config, name) for name in config["judges"]}
    assert families.pop("release") == settings_of.RELEASED
    thresholds = {name for name, family in families.items() if family == settings_of.THRESHOLDED}
    assert thresholds == {"threshold", "at-least-1", "at-least-2", "at-least-4"}
    assert {families[name] for name in families.keys() - thresholds} == {settings_of.PROMPTED}


def test_a_data_set_may_have_seeds_of_its_own(config: dict[str, Any]) -> None:
    assert settings_of.seeds_of(config, "demo", "refine") == [2024, 2025, 2026]
    assert settings_of.seeds_of(config, "ml1m", "refine") == config["seeds"]


def test_files_are_merged_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: {y: 1, z: 1}\nw: [1, 2]\n")
    (tmp_path / "b.yaml").write_text("x: {z: 2}\nw: [3]\n")
    (tmp_path / "c.yaml").write_text("")
    merged = settings_of.load(*(tmp_path / f"{name}.yaml" for name in "abc"))
    assert merged == {"x": {"y": 1, "z": 2}, "w": [3]}


trees = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda below: st.dictionaries(st.sampled_from("abcd"), below, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abcd"), trees, max_size=3)


@given(mappings, mappings)
def test_merging_changes_neither_and_lets_the_overlay_win(
    base: dict[str, Any], overlay: dict[str, Any]
) -> None:
    before = copy.deepcopy((base, overlay))
    merged = overlays.merge(base, overlay)
    assert (base, overlay) == before
    assert overlays.merge(merged, overlay) == merged
    assert overlays.merge(base, {}) == base
    assert merged.keys() == base.keys() | overlay.keys()


@given(mappings)
def test_a_digest_does_not_depend_on_the_order_of_keys(mapping: dict[str, Any]) -> None:
    assert settings_of.digest(dict(reversed(mapping.items()))) == settings_of.digest(mapping)
    assert settings_of.digest(mapping | {"e": 1}) != settings_of.digest(mapping | {"e": 2})


def test_how_a_training_goes_is_no_setting_that_results_depend_on(config: dict[str, Any]) -> None:
    found = settings_of.settings(config, "demo", "refine")["training"]
    assert not found.keys() & {"checkpoint_minutes", "tensorboard"}
    assert found["epochs"] == config["training"]["epochs"]
