import json
import math
import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from feedback_data import (
    PROMPTING,
    TEMPLATE,
    Split,
    ratings_strategy,
    release_split,
    write_feedback,
    write_source,
    write_split,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refine.artifacts import (
    ANSWERS,
    CONFIRMED,
    FALSELY_IDENTIFIED,
    PROMPTS,
    UNDECIDED,
    read_json,
    read_table,
    write_json,
)
from refine.feedback import availability
from refine.feedback.agreement import describe_feedback
from refine.feedback.availability import unavailable
from refine.feedback.judges import JudgeError, answer_prompts
from refine.feedback.labels import label_answers
from refine.feedback.profile import SMOOTHING
from refine.feedback.prompts import write_prompts
from refine.feedback.registry import ENGINES, JUDGES, judge_modules
from refine.feedback.release import label_from_release

quick = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

NO_LLM = sorted(JUDGES.keys() - ENGINES.keys())

JUDGE_SETTINGS: dict[str, dict[str, Any]] = {
    "all": {},
    "random": {"yes_rate": 0.6, "seed": 2024},
    "popularity": {"yes_rate": 0.6},
    "profile": {},
}


def ask(
    split: Split,
    kind: str,
    like: Path | None = None,
    shard: int = 1,
    shards: int = 1,
    probe: Path | None = None,
    min_auc: float | None = None,
    **changes: Any,
) -> pl.DataFrame:
    prompts, output = split.folder / "prompts.parquet", split.folder / "answers.parquet"
    if not prompts.exists():
        write_prompts(*split.tables, TEMPLATE, prompts, prompts=PROMPTING, judge={}, dataset="Demo")
    judge = {"kind": kind} | JUDGE_SETTINGS.get(kind, {}) | changes
    answer_prompts(
        prompts,
        split.train,
        split.items,
        like,
        output,
        judge=judge,
        shard=shard,
        shards=shards,
        cache=split.folder / "cache",
        probe=probe,
        min_auc=min_auc,
    )
    return pl.DataFrame(read_table(output, ANSWERS))


def picks(split: Split, answers: pl.DataFrame) -> set[tuple[Any, Any]]:
    """Picked pairs, as ids."""
    prompts = pl.DataFrame(read_table(split.folder / "prompts.parquet", PROMPTS))
    users = dict(pl.read_parquet(split.users).rows())
    items = dict(pl.read_parquet(split.items).select("item", "item_id").rows())
    rows = answers.join(prompts.select("prompt_id", "user"), on="prompt_id")
    return {
        (users[user], items[item])
        for user, picked in rows.select("user", "picked").rows()
        for item in picked
    }


def candidates(split: Split) -> pl.DataFrame:
    prompts = pl.DataFrame(read_table(split.folder / "prompts.parquet", PROMPTS))
    return prompts.select("user", item="candidates").explode("item", empty_as_null=False)


def many_threes(folder: Path, users: int = 40, items: int = 30) -> Split:
    rows = [
        (u, i, 3 if (u * i) % 3 else 5)
        for u in range(users)
        for i in range(items)
        if u % (i + 1) < 20
    ]
    return write_split(folder, rows)


@quick
@given(rows=ratings_strategy(), shards=st.integers(1, 4))
@pytest.mark.parametrize("kind", NO_LLM)
def test_shards_together_answer_as_one(
    tmp_path: Path, kind: str, rows: list[tuple[int, int, int]], shards: int
) -> None:
    split = write_split(tmp_path, rows)
    (tmp_path / "prompts.parquet").unlink(missing_ok=True)
    whole = ask(split, kind)
    parts = [ask(split, kind, shard=shard + 1, shards=shards) for shard in range(shards)]
    assert pl.concat(parts).sort("prompt_id").equals(whole.sort("prompt_id"))
    prompts = pl.DataFrame(read_table(tmp_path / "prompts.parquet", PROMPTS))
    assert whole["prompt_id"].to_list() == prompts["prompt_id"].to_list()
    assert (whole["status"] == "answered").all()


def test_all_picks_everything(tmp_path: Path) -> None:
    split = many_threes(tmp_path)
    answers = ask(split, "all")
    assert answers["picked"].list.len().sum() == len(candidates(split))
    assert answers["left_out"].list.len().sum() == 0
    assert answers["scores"].is_null().all()


def test_random_picks_at_the_yes_rate(tmp_path: Path) -> None:
    split = many_threes(tmp_path, users=100, items=60)
    answers = ask(split, "random", yes_rate=0.7)
    n = len(candidates(split))
    picked = answers["picked"].list.len().sum()
    assert abs(picked - 0.7 * n) < 4 * math.sqrt(n * 0.7 * 0.3)
    assert ask(split, "random", yes_rate=0.0)["picked"].list.len().sum() == 0
    assert ask(split, "random", yes_rate=1.0)["picked"].list.len().sum() == n
    assert not answers.equals(ask(split, "random", yes_rate=0.7, seed=1))


def test_random_does_not_change_as_the_dataset_grows(tmp_path: Path) -> None:
    rows = [(10 * user, 10 * item, 3) for user in range(1, 20) for item in range(1, 20)]
    more = [(10 * user - 5, 10 * item - 5, 3) for user in range(1, 20) for item in range(1, 20)]
    small, large = (
        write_split(tmp_path / "small", rows),
        write_split(tmp_path / "large", rows + more),
    )
    before, after = (picks(split, ask(split, "random")) for split in (small, large))
    assert before == {(user, item) for user, item in after if user % 10 == 0}


def test_popularity_picks_the_most_rated_first_over_all_users(tmp_path: Path) -> None:
    rows = [(1, 1, 3), (1, 2, 3), (2, 1, 3), (2, 3, 3), (3, 1, 5), (3, 2, 5), (4, 1, 3)]
    split = write_split(tmp_path, rows)
    # Ratings an item: 4, 2, 1. Candidates: item 1 for users 1, 2 and 4, item 2 for 1, item 3 for 2.
    assert picks(split, ask(split, "popularity", yes_rate=0.8)) == {(1, 1), (2, 1), (4, 1), (1, 2)}
    assert picks(split, ask(split, "popularity", yes_rate=0.4)) == {(1, 1), (2, 1)}
    # How often an item was rated is no log-odds of a like, which is what scores are.
    assert ask(split, "popularity")["scores"].is_null().all()


def test_like_copies_coverage_and_yes_rate(tmp_path: Path) -> None:
    rows = [(u, i, 3) for u in range(60) for i in range(7)] + [(99, 1, 3)]
    split = write_split(tmp_path, rows)
    # One judge's verdicts: nothing for users 0 to 9, items 0 and 1 left out for 10 to 29, and a yes
    # to item 2 of everybody else.
    labels = [
        (
            u,
            i,
            3,
            UNDECIDED
            if u < 10 or (u < 30 and i < 2)
            else FALSELY_IDENTIFIED
            if i == 2
            else CONFIRMED,
        )
        for u in range(60)
        for i in range(7)
    ] + [(60, 1, 3, UNDECIDED)]
    like = write_feedback(tmp_path / "like.parquet", labels)
    decided = {(u, i) for u, i, _, label in labels if label != UNDECIDED}
    yes = sum(label == FALSELY_IDENTIFIED for *_, label in labels)

    assert picks(split, ask(split, "all", like)) == decided
    popular = ask(split, "popularity", like)
    assert popular["picked"].list.len().sum() == yes
    drawn = picks(split, ask(split, "random", like, yes_rate=None))
    assert drawn < decided
    assert abs(len(drawn) - yes) < 4 * math.sqrt(yes)

    # What is left out stays undecided, and nothing else does.
    feedback = tmp_path / "feedback.parquet"
    label_answers(
        split.train,
        tmp_path / "prompts.parquet",
        [tmp_path / "answers.parquet"],
        feedback,
        labels={"unasked_low_ratings": "confirmed", "threshold": None},
        max_undecided=0,
    )
    labelled = pl.read_parquet(feedback)
    assert set(labelled.filter(label=UNDECIDED)["reason"]) == {"left_out"}
    assert (
        set(labelled.filter(pl.col("label") != UNDECIDED).select("user", "item").rows()) == decided
    )


def test_like_a_judge_without_verdicts_leaves_everything_out(tmp_path: Path) -> None:
    split = write_split(tmp_path, [(1, 1, 3), (1, 2, 3)])
    like = write_feedback(tmp_path / "like.parquet", [(0, 0, 3, UNDECIDED), (0, 1, 3, UNDECIDED)])
    for kind in ("all", "random", "popularity"):
        (answer,) = ask(split, kind, like).rows(named=True)
        assert answer["picked"] == []
        assert sorted(answer["left_out"]) == [0, 1]


def test_controls_like_the_release(mirror: Path, tmp_path: Path) -> None:
    split = release_split(mirror, tmp_path)
    labels = mirror / "release/ml100k/ML-100K_train_augment.csv"
    source = write_source(tmp_path / "source.json", labels=labels)
    published = tmp_path / "release.parquet"
    label_from_release(*split.tables, source, published)
    positives = {}
    for kind in ("all", "random", "popularity"):
        ask(split, kind, published)
        feedback, report = tmp_path / "feedback.parquet", tmp_path / "refinement.json"
        label_answers(
            split.train,
            tmp_path / "prompts.parquet",
            [tmp_path / "answers.parquet"],
            feedback,
            labels={"unasked_low_ratings": "confirmed", "threshold": None},
            max_undecided=0,
        )
        # Like for like: what the release leaves undecided the controls do too, and besides only
        # six 2s, whose users rated nothing 3, so that no prompt asks about anything of theirs.
        undecided = pl.read_parquet(feedback).filter(label=UNDECIDED)
        more = undecided.join(
            pl.read_parquet(published).filter(label=UNDECIDED), on=("user", "item"), how="anti"
        )
        assert (len(undecided), len(more)) == (13842 + 6, 6)
        assert set(more["rating"]) == {2}
        threes = pl.read_parquet(feedback).filter(rating=3)["user"]
        assert not set(more["user"]) & set(threes)
        describe_feedback(feedback, split.users, split.items, source, report)
        found = read_json(report)
        assert found["candidates"]["decided"] == 17284
        positives[kind] = found["train_positives"]
    assert positives["all"] == 56165
    assert positives["popularity"] == 52981
    # 17,284 draws at .816: standard deviation 51.
    assert abs(positives["random"] - 52981) < 4 * 51


def slow_scores(rows: list[tuple[int, int, int]], genres: dict[int, list[str]]) -> dict[Any, float]:
    """The documented formula, one pair at a time."""
    by_user = defaultdict(dict)
    for user, item, rating in rows:
        by_user[user][item] = rating
    x = defaultdict(int)
    for _, item, _ in rows:
        x[item] += 1
    popularity = {item: math.log(1 + count) for item, count in x.items()}
    classes: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    asked = []
    for user, ratings in by_user.items():
        generous = sum(ratings.values()) / len(ratings) >= 3
        for item, rating in ratings.items():
            if rating >= 4:
                classes[True].append((user, item))
            elif rating <= (2 if generous else 1):
                classes[False].append((user, item))
            else:
                asked.append((user, item))
    names = sorted({name for item in x for name in genres[item]})

    def weight(item: int, genre: str) -> float:
        return (genre in genres[item]) / max(len(set(genres[item])), 1)

    def share(genre: str, user: int, like: bool) -> float:
        total = {g: sum(weight(i, g) for _, i in classes[like]) for g in names}
        own = {g: sum(weight(i, g) for u, i in classes[like] if u == user) for g in names}
        overall = (total[genre] + 1) / (sum(total.values()) + len(names))
        return (own[genre] + SMOOTHING * overall) / (sum(own.values()) + SMOOTHING)

    def mean_all(like: bool) -> float:
        values = [popularity[i] for _, i in classes[like]] or list(popularity.values())
        return sum(values) / len(values)

    def mean(user: int, like: bool) -> float:
        own = [popularity[i] for u, i in classes[like] if u == user]
        return (sum(own) + SMOOTHING * mean_all(like)) / (len(own) + SMOOTHING)

    variances = [
        sum((popularity[i] - mean_all(like)) ** 2 for _, i in pairs) / len(pairs)
        for like, pairs in classes.items()
        if pairs
    ]
    v = (sum(variances) / len(variances) if variances else 0) or 1.0
    scores = {}
    for user, item in asked:
        a, b = mean(user, True), mean(user, False)
        scores[user, item] = sum(
            weight(item, g) * math.log(share(g, user, True) / share(g, user, False)) for g in names
        ) + (a - b) / v * (popularity[item] - (a + b) / 2)
    return scores


@quick
@given(
    rows=ratings_strategy(),
    kinds=st.lists(st.lists(st.sampled_from("ABCD"), max_size=3), min_size=25, max_size=25),
)
def test_profile_scores_as_documented(
    tmp_path: Path, rows: list[tuple[int, int, int]], kinds: list[list[str]]
) -> None:
    genres = {item: kinds[item - 1] for item in range(1, 26)}
    split = write_split(tmp_path, rows, genres=genres)
    (tmp_path / "prompts.parquet").unlink(missing_ok=True)
    answers = ask(split, "profile")
    prompts = pl.DataFrame(read_table(tmp_path / "prompts.parquet", PROMPTS))
    users = dict(pl.read_parquet(split.users).rows())
    items = dict(pl.read_parquet(split.items).select("item", "item_id").rows())
    expected = slow_scores(rows, genres)
    joined = answers.join(prompts.select("prompt_id", "user", "candidates"), on="prompt_id")
    seen = 0
    for user, codes, scores, picked in joined.select(
        "user", "candidates", "scores", "picked"
    ).rows():
        assert [item for item, score in zip(codes, scores, strict=True) if score > 0] == picked
        for item, score in zip(codes, scores, strict=True):
            assert score == pytest.approx(expected[users[user], items[item]], rel=1e-5, abs=1e-6)
            seen += 1
    assert seen == len(expected)


def test_profile_prefers_what_resembles_the_likes(tmp_path: Path) -> None:
    rows = [(1, item, 5 if item <= 10 else 1) for item in range(1, 21)] + [(1, 21, 3), (1, 22, 3)]
    genres = {item: ["Comedy" if item <= 10 or item == 21 else "Horror"] for item in range(1, 23)}
    split = write_split(tmp_path, rows, genres=genres)
    assert picks(split, ask(split, "profile")) == {(1, 21)}


@pytest.mark.parametrize("kind", ["threshold", "release", "nonsense"])
def test_only_judges_that_answer_prompts_are_asked(tmp_path: Path, kind: str) -> None:
    with pytest.raises(JudgeError, match=f"{kind} answers no prompts.*profile"):
        ask(write_split(tmp_path, [(1, 1, 3)]), kind)


def test_answers_that_do_not_fit_the_prompts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lazy_judge.py").write_text(
        "def answer(task):\n"
        "    return task.answers(task.candidates().with_columns(picked=True))[1:]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(JUDGES, "lazy", "lazy_judge:answer")
    with pytest.raises(JudgeError, match="0 answers to 1 prompts"):
        ask(write_split(tmp_path, [(1, 1, 3)]), "lazy")
    assert not (tmp_path / "answers.parquet").exists()


def test_answers_say_what_gave_them(tmp_path: Path) -> None:
    split = write_split(tmp_path, [(1, 1, 3)])
    ask(split, "random", yes_rate=0.5)
    settings = {"kind": "random", "yes_rate": 0.5, "seed": 2024}
    metadata = pq.read_schema(tmp_path / "answers.parquet").metadata
    assert json.loads(metadata[b"judge"]) == {
        "settings": settings,
        "identity": settings,
        "facts": {},
    }


def test_a_judge_that_fails_its_probe_is_not_asked(tmp_path: Path) -> None:
    split, probe = write_split(tmp_path, [(1, 1, 3)]), tmp_path / "probe.json"
    for auc, words in ((0.5499, "AUC of 0.550.*asks for 0.55;"), (None, "no verdicts at all")):
        write_json({"auc": auc}, probe)
        with pytest.raises(JudgeError, match=words):
            ask(split, "all", probe=probe, min_auc=0.55)
        assert not (tmp_path / "answers.parquet").exists()
        ask(split, "all", probe=probe)
        (tmp_path / "answers.parquet").unlink()
    write_json({"auc": 0.55}, probe)
    ask(split, "all", probe=probe, min_auc=0.55)


def test_judges_without_an_llm_are_available_anywhere() -> None:
    published = {"title": "T", "release": {"at": "mirror"}}
    for kind in (*NO_LLM, "threshold", "release"):
        assert unavailable({"kind": kind}, published) is None
    reason = unavailable({"kind": "release"}, {"title": "T"})
    assert reason is not None
    assert "--config judge=profile" in reason
    unknown = unavailable({"kind": "psychic"}, published)
    assert unknown is not None
    assert "psychic" in unknown
    assert "vllm" in unknown


def test_vllm_is_available_where_it_is_or_will_be_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(availability, "engine_python", lambda: "/env/bin/python")
    assert unavailable({"kind": "vllm"}, {}) is None
    monkeypatch.setattr(availability, "engine_python", lambda: None)
    assert unavailable({"kind": "vllm"}, {}, deployed=True) is None
    reason = unavailable({"kind": "vllm"}, {})
    assert reason is not None
    for remedy in ("--sdm conda", "make llm", "docs/llm.md", "--config judge=profile"):
        assert remedy in reason


def test_an_endpoint_needs_the_name_of_its_model() -> None:
    judge = {"kind": "openai", "url": "http://localhost:8000/v1", "model": None}
    reason = unavailable(judge, {}, deployed=True)
    assert reason is not None
    for remedy in ("`model`", "localhost:8000", "docs/llm.md", "--config judge=profile"):
        assert remedy in reason
    assert unavailable(judge | {"model": "llama3"}, {}) is None


def loaded_after(statement: str) -> set[str]:
    source = Path(__file__).parents[2] / "src"
    code = f"import sys; sys.path.insert(0, {str(source)!r}); {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_availability_needs_the_standard_library_only() -> None:
    loaded = loaded_after("import refine.feedback.availability, refine.feedback.identity")
    assert not loaded & {"polars", "pyarrow", "numpy", "torch"}


def test_judges_and_labels_do_not_know_of_each_other() -> None:
    # The worker runs by itself, in the engine's environment.
    judges = {module for kind in JUDGES for module in judge_modules(kind)}
    judges -= {"refine.feedback.llm.worker"}
    everybody = loaded_after(f"import refine.feedback.judges, {', '.join(sorted(judges))}")
    assert not everybody & {"refine.feedback.labels", "refine.feedback.prompts"}
    # One judge's code does not reach another's either, or an edit would spoil its answers.
    assert not loaded_after("import refine.feedback.judges") & judges
    labellers = loaded_after("import refine.feedback.labels, refine.feedback.release")
    assert not labellers & {*judges, "refine.feedback.judges", "refine.feedback.tasks"}


def test_the_modules_of_a_kind_are_all_that_are_loaded_by_name() -> None:
    llm = "refine.feedback.llm"
    assert judge_modules("profile") == ["refine.feedback.profile"]
    assert judge_modules("vllm") == [f"{llm}.judge", f"{llm}.vllm", f"{llm}.worker"]
    assert judge_modules("openai") == [f"{llm}.judge", f"{llm}.endpoint"]
    for engine in ENGINES.values():
        module, _, function = engine.partition(":")
        assert callable(getattr(import_module(module), function))
