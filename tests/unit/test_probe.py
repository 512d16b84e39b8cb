import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl
import pytest
from feedback_data import PROMPTING, TEMPLATE, TEMPLATES, Rows, Split, write_split
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from refine.feedback.llm import probe as probing
from refine.feedback.llm.engine import Reply, Request
from refine.feedback.llm.probe import DISLIKE, LIKE, ProbeError, hide, probe
from refine.feedback.prompts import gather

JUDGE: dict[str, Any] = {
    "kind": "openai",
    "url": "http://localhost:8000/v1",
    "model": "org/model",
    "revision": "main",
    "server": "plain",
    "form": "base",
    "strategy": "select",
    "context": 4096,
    "tokenizer": None,
    "chat": {},
    "key": "OPENAI_API_KEY",
    "concurrency": 1,
    "timeout": 1,
    "retries": 0,
    "speed": {"prompt": None, "answer": None},
    "price": {"prompt": 2.0, "cached": 0.5, "answer": 8.0},
}

Say = Callable[[list[str], Request], Reply]


class Model:
    """An engine that answers by the titles shown; it remembers what it was asked."""

    def __init__(self, say: Say) -> None:
        self.facts = {"commit": "a" * 40}
        self.asked: list[Request] = []
        self.starts = 0
        self._say = say

    @contextmanager
    def __call__(self, settings: dict[str, Any]) -> Iterator["Model"]:
        self.starts += 1
        yield self

    def ask(self, requests: Iterable[Request]) -> Iterator[Reply]:
        for request in requests:
            self.asked.append(request)
            yield self._say(shown(request.question), request)


def shown(text: str) -> list[str]:
    return re.findall(r'"(Title [^"]*)"', text)


def picks(chosen: Callable[[str], bool]) -> Say:
    """A model that picks the titles that a function says."""

    def say(titles: list[str], request: Request) -> Reply:
        numbers = [str(place) for place, title in enumerate(titles, 1) if chosen(title)]
        text = ", ".join(numbers) or "none"
        return Reply(
            request.key, text, prompt_tokens=100, cached_tokens=60, answer_tokens=len(numbers)
        )

    return say


def says(text: str) -> Say:
    return lambda titles, request: Reply(request.key, text)


def rating_of(title: str) -> int:
    """Titles of these tests end in the rating that their one user gave them."""
    return int(title[-1])


def rows_of(user: int, ratings: Iterable[int]) -> Rows:
    """Items of this user alone, named after user, place and rating."""
    return [(user, f"{user}-{place}-{rating}", rating) for place, rating in enumerate(ratings)]


ALL_RATINGS = [5, 5, 5, 4, 4, 3, 3, 3, 3, 3, 3, 2, 1, 1]


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return write_split(
        tmp_path / "split", [row for user in range(30) for row in rows_of(user, ALL_RATINGS)]
    )


@pytest.fixture
def run(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    def run(model: Model, split: Split = split, items: int = 40, **judge: Any) -> dict[str, Any]:
        monkeypatch.setattr(probing, "engine_of", lambda kind: model)
        settings = JUDGE | judge
        template = TEMPLATES / "score.yaml" if settings["strategy"] == "score" else TEMPLATE
        output = tmp_path / "probe.json"
        probe(
            *split.tables,
            template,
            output,
            prompts=PROMPTING,
            judge=settings,
            dataset="Test",
            probe={"items": items, "seed": 1, "min_auc": None},
            cache=tmp_path / "cache",
        )
        report: dict[str, Any] = json.loads(output.read_text())
        return report

    return run


Run = Callable[..., dict[str, Any]]


def test_a_judge_that_knows_the_ratings(run: Run) -> None:
    report = run(Model(picks(lambda title: rating_of(title) == 5)))
    assert report["auc"] == 1
    assert report["auc_interval"] == [1, 1]
    assert report["users"] == 20
    assert report["items"] == {"like": 20, "dislike": 20}
    assert report["yes_rate"] == {"likes": 1, "dislikes": 0, "candidates": 0}
    assert report["parse_rate"] == 1
    assert report["position"]["flipped"] == 0
    assert "tells likes from dislikes" in report["verdict"]
    assert report["advice"] == []


def test_a_judge_that_has_it_backwards(run: Run) -> None:
    report = run(Model(picks(lambda title: rating_of(title) == 1)))
    assert report["auc"] == 0
    assert "dislikes for likes" in report["verdict"]


def test_a_judge_that_picks_everything(run: Run) -> None:
    report = run(Model(picks(lambda title: True)))
    assert report["auc"] == 0.5
    assert report["yes_rate"] == {"likes": 1, "dislikes": 1, "candidates": 1}
    assert "coin" in report["verdict"]
    advice = " ".join(report["advice"])
    assert "labels.threshold" in advice
    assert "strategy: score" in advice


def test_a_judge_that_picks_nothing(run: Run) -> None:
    report = run(Model(says("none")))
    assert report["auc"] == 0.5
    assert report["yes_rate"]["candidates"] == 0
    assert not any("says yes" in advice for advice in report["advice"])


def test_a_judge_that_picks_what_comes_first(run: Run) -> None:
    model = Model(says("1"))
    report = run(model)
    picked: dict[str, list[bool]] = {}
    for request in model.asked:
        for place, title in enumerate(shown(request.question)):
            picked.setdefault(title, []).append(place == 0)
    scores = {
        rating: [fmean(orders) for title, orders in picked.items() if rating_of(title) == rating]
        for rating in (1, 5)
    }
    assert set(scores[1] + scores[5]) > {0.5}
    assert report["auc"] == pytest.approx(mannwhitneyu(scores[5], scores[1]).statistic / 20**2)
    rates = {row["position"]: row["rate"] for row in report["position"]["pick_rate"]}
    assert rates.pop(1) == 1
    assert rates
    assert set(rates.values()) == {0}
    assert report["position"]["flipped"] > 0.25
    assert any("order" in advice for advice in report["advice"])


def test_a_judge_that_writes_prose(run: Run) -> None:
    report = run(Model(says("I would say that it depends.")))
    assert report["auc"] is None
    assert report["auc_interval"] is None
    assert report["yes_rate"]["candidates"] is None
    assert report["statuses"]["unparseable"] == report["prompts"]
    assert report["parse_rate"] == 0
    assert "no answer" in report["verdict"]


def test_a_prompt_that_fails_leaves_the_other_order(run: Run) -> None:
    def say(titles: list[str], request: Request) -> Reply:
        if len(titles) > 1 and titles != sorted(titles):
            return Reply(request.key, error="too long")
        return picks(lambda title: rating_of(title) == 5)(titles, request)

    report = run(Model(say))
    assert report["statuses"]["missing"] > 0
    assert report["statuses"]["missing"] + report["statuses"]["answered"] == report["prompts"]
    assert report["parse_rate"] == 1
    assert report["auc"] == 1


def test_scores_count_as_such(run: Run) -> None:
    def say(titles: list[str], request: Request) -> Reply:
        return Reply(request.key, log_odds=rating_of(titles[0]) - 10.0, answer_tokens=1)

    model = Model(say)
    report = run(model, strategy="score")
    assert report["auc"] == 1  # though no candidate has log-odds above 0
    assert report["yes_rate"] == {"likes": 0, "dislikes": 0, "candidates": 0}
    assert report["position"] is None
    titles = [title for request in model.asked for title in shown(request.question)]
    # Each once; of each of 20 users a 5, a 1 and a true candidate.
    assert len(titles) == len(set(titles)) == len(model.asked) == report["prompts"] == 60
    assert sorted(map(rating_of, titles)) == [1] * 20 + [3] * 20 + [5] * 20


def test_scores_above_0_are_yes(run: Run) -> None:
    def say(titles: list[str], request: Request) -> Reply:
        return Reply(request.key, log_odds=rating_of(titles[0]) - 2.0)

    report = run(Model(say), strategy="score")
    assert report["yes_rate"] == {"likes": 1, "dislikes": 0, "candidates": 1}
    assert any("raise labels.threshold" in advice for advice in report["advice"])


def test_hidden_ratings_leave_the_lists_and_are_asked_about_in_two_orders(
    run: Run, split: Split
) -> None:
    model = Model(picks(lambda title: False))
    run(model)
    hidden = hide(gather(*split.tables), 40, seed=1)
    titles = pl.read_parquet(split.items).select("item", "title")
    names = set(hidden.join(titles, on="item")["title"])
    assert len(names) == 40
    seen: dict[str, list[tuple[int, int]]] = {}
    for request in model.asked:
        listed = shown(request.question)
        assert names & set(listed)
        assert not names & set(shown(request.context))
        assert {rating_of(title) for title in listed} <= {1, 3, 5}
        for place, title in enumerate(listed):
            seen.setdefault(title, []).append((place, len(listed)))
    assert names <= set(seen)
    for places in seen.values():
        (first, size), *again = places
        assert again == ([(size - 1 - first, size)] if size > 1 else [])
    # Everything else that the user rated stays where it was.
    one = model.asked[0]
    user = shown(one.question)[0].split("-")[0]
    left = [title for title in shown(one.context) if title.startswith(f"{user}-")]
    assert sorted(map(rating_of, left)) == sorted([5, 5, 4, 4, 2, 1])


def test_answers_are_asked_for_once(run: Run) -> None:
    first = run(Model(picks(lambda title: rating_of(title) > 2)))
    again = Model(says("never asked"))
    second = run(again)
    assert again.starts == 0
    assert second["usage"]["prompts_asked"] == 0
    assert second["usage"]["seconds"] is None
    assert {**second, "usage": None} == {**first, "usage": None}


def test_usage_and_cost_are_of_what_was_asked(run: Run) -> None:
    report = run(Model(picks(lambda title: rating_of(title) == 5)))
    usage, prompts = report["usage"], report["prompts"]
    assert usage["prompts_asked"] == prompts
    assert usage["prompt_tokens"] == 100 * prompts
    assert usage["cached_tokens"] == 60 * prompts
    assert usage["answer_tokens"] == 40  # each of 20 likes is picked in two orders
    expected = (40 * prompts * 2.0 + 60 * prompts * 0.5 + 40 * 8.0) / 1e6
    assert usage["cost"] == pytest.approx(expected)
    assert usage["computed_tokens_per_second"] == pytest.approx(40 * prompts / usage["seconds"])


def test_the_report_is_logged(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "refine.probe"):
        report = run(Model(picks(lambda title: True)))
    (text,) = (record.getMessage() for record in caplog.records if record.name == "refine.probe")
    flat = " ".join(text.split())
    for part in (report["verdict"], *report["advice"], "AUC of 5s against 1s 0.500", "org/model"):
        assert part in flat


def test_popularity_alone_is_reported(run: Run, tmp_path: Path) -> None:
    # The 5s are shared by all users, so that they are better known than the 1s.
    rows: Rows = [
        row
        for user in range(12)
        for row in [
            *((user, f"hit-{place}-5", 5) for place in range(4)),
            *rows_of(user, [4, 3, 3, 2, 1, 1]),
        ]
    ]
    split = write_split(tmp_path / "popular", rows)
    report = run(Model(picks(lambda title: title.startswith("Title hit"))), split)
    assert report["auc_of_popularity"] == 1
    assert any("`popularity`" in advice for advice in report["advice"])


def test_too_few_users_is_one_clear_error(run: Run, tmp_path: Path) -> None:
    rows = [row for user in range(9) for row in rows_of(user, ALL_RATINGS)]
    rows += [row for user in range(9, 30) for row in rows_of(user, [5, 4, 3, 3, 2, 1])]  # one 5
    model = Model(says("none"))
    with pytest.raises(ProbeError, match=r"^9 users have two 5s, .* needs 10"):
        run(model, write_split(tmp_path / "few", rows))
    assert model.starts == 0


def test_fewer_users_than_asked_for_will_do(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    report = run(Model(says("none")), items=200)
    assert report["users"] == 30
    assert "30 users can lend ratings, not the 100 asked for" in caplog.text


def test_a_judge_without_a_language_model_is_refused(run: Run) -> None:
    with pytest.raises(ProbeError, match="profile"):
        run(Model(says("none")), kind="profile")


@given(st.integers(0, 2**32), st.integers(11, 24), st.integers(1, 30))
def test_what_a_user_lends_is_the_users_own_affair(
    tmp_path_factory: pytest.TempPathFactory, seed: int, users: int, items: int
) -> None:
    folder = tmp_path_factory.mktemp("draws")
    rows = [row for user in range(users) for row in rows_of(user, ALL_RATINGS)]
    every = hide_in(write_split(folder / "all", rows), 1000, seed)
    assert every["user_id"].n_unique() == users
    assert every.group_by("user_id").agg("kind")["kind"].to_list() == [[LIKE, DISLIKE]] * users
    assert {(kind, item[-1]) for kind, item in every.select("kind", "item_id").iter_rows()} == {
        (LIKE, "5"),
        (DISLIKE, "1"),
    }
    # Of fewer items some users are drawn, who lend the same; other users change nothing of it.
    some = hide_in(write_split(folder / "all", rows), max(items, 2), seed)
    assert len(some) == 2 * min(users, max(items // 2, 1))
    assert set(some.rows()) <= set(every.rows())
    fewer = [row for row in rows if row[0] != 3]
    without = hide_in(write_split(folder / "fewer", fewer), 1000, seed)
    assert set(without.rows()) == {row for row in every.rows() if row[0] != 3}


def hide_in(split: Split, items: int, seed: int) -> pl.DataFrame:
    ratings = gather(*split.tables)
    known = ratings.select("user", "item", "user_id", "item_id")
    hidden = hide(ratings, items, seed)
    return hidden.join(known, on=("user", "item"), maintain_order="left").select(
        "user_id", "item_id", "kind"
    )


def test_any_user_may_be_drawn_and_lend_any_5_and_any_1(split: Split) -> None:
    drawn = [hide_in(split, 30, seed) for seed in range(20)]
    lent = pl.concat(drawn)
    assert lent["user_id"].n_unique() == 30
    assert {item.split("-")[1] for item in lent["item_id"]} == {"0", "1", "2", "12", "13"}
