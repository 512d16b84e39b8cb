import json
import re
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from refine.artifacts import ANSWER_STATUSES
from refine.feedback.parsing import (
    ANSWERED,
    MISSING,
    TRUNCATED,
    UNPARSEABLE,
    answer_room,
    json_schema,
    numbers,
    parse,
    pattern,
)

TITLES = ('"Léon (a.k.a. The Professional)"', '"A, B and C"', '"[Rec] $2 + 2 \\ 5? {|}^*."', '"7"')

# What may stand in a title as it is shown: no double quote, no line break.
titles = st.lists(
    st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters='"'), max_size=12).map(
        lambda text: f'"{text}"'
    ),
    min_size=1,
    max_size=8,
)
choices_of_either_kind = st.integers(1, 12).map(numbers) | titles.map(tuple)


def test_statuses_are_those_of_the_answers() -> None:
    assert (ANSWERED, UNPARSEABLE, TRUNCATED, MISSING) == ANSWER_STATUSES


@pytest.mark.parametrize("choices", [numbers(1), numbers(2), numbers(5), TITLES])
def test_exactly_the_subsets_in_order_are_in_form(choices: tuple[str, ...]) -> None:
    in_form = re.compile(pattern(choices))
    subsets = {
        ", ".join(subset): subset
        for size in range(1, len(choices) + 1)
        for subset in combinations(choices, size)
    } | {"none": ()}
    for text, subset in subsets.items():
        for before in ("", " "):
            for after in ("", "\n", "\n\n"):
                said = before + text + after
                assert in_form.fullmatch(said)
                assert parse(said, choices, truncated=False) == (
                    ANSWERED,
                    [choices.index(choice) for choice in subset],
                )
    # Any sequence of choices and nothing else: only those that are subsets in order match.
    pairs = [", ".join(pair) for pair in ((a, b) for a in choices for b in choices)]
    for text in (*pairs, "", "none, " + choices[0], choices[0] + ",", choices[0] + "."):
        assert bool(in_form.fullmatch(text)) == (text in subsets)


@given(choices_of_either_kind)
def test_the_pattern_uses_only_what_all_engines_know(choices: tuple[str, ...]) -> None:
    bare = re.sub(r"\\.", "", pattern(choices))
    assert not set(bare) & set("[]{}*+^$.")


def test_the_pattern_grows_with_the_square_of_the_choices() -> None:
    small, large = (len(pattern([f'"{n:04}"' for n in range(size)])) for size in (20, 200))
    assert large / small < 1.1 * 10**2


@given(choices_of_either_kind, st.data())
def test_what_is_in_form_is_read_and_fits_into_the_room(
    choices: tuple[str, ...], data: st.DataObject
) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(choices) - 1))))
    # A title that is shown twice picks both.
    meant = [
        place for place, choice in enumerate(choices) if choice in {choices[p] for p in places}
    ]
    distinct = list(dict.fromkeys(choices[place] for place in meant))
    plain = f" {', '.join(distinct) or 'none'}\n\n"
    assert re.fullmatch(pattern(choices), plain)
    assert parse(plain, choices, truncated=False) == (ANSWERED, meant)

    quoted = choices[0].startswith('"')
    answer = {"liked": [choice[1:-1] if quoted else int(choice) for choice in distinct]}
    Draft202012Validator(json_schema(choices)).validate(answer)
    as_json = json.dumps(answer, ensure_ascii=False)
    assert parse(as_json, choices, truncated=False) == (ANSWERED, meant)
    for said in (plain, as_json):
        assert len(said.encode()) + 1 <= answer_room(choices)


@pytest.mark.parametrize(
    "answer",
    [{"liked": [4]}, {"liked": ["1"]}, {"liked": [1, 1, 2, 3]}, {}, [1], {"liked": [], "why": ""}],
)
def test_the_schema_rejects_what_is_out_of_form(answer: object) -> None:
    assert not Draft202012Validator(json_schema(numbers(3))).is_valid(answer)


def test_the_schema_names_a_repeated_title_once() -> None:
    liked = json_schema(('"A"', '"B"', '"A"'))["properties"]["liked"]
    assert liked["items"] == {"type": "string", "enum": ["A", "B"]}
    assert liked["maxItems"] == 2


@pytest.mark.parametrize(
    ("said", "places"),
    [
        ("1, 3", [0, 2]),
        ("3, 1", [0, 2]),
        ("1,3", [0, 2]),
        ("1; 3", [0, 2]),
        ("1 and 3", [0, 2]),
        ("1, 2, and 4.", [0, 1, 3]),
        ("1 & 3", [0, 2]),
        ("[1, 3]", [0, 2]),
        ("(1, 3).", [0, 2]),
        ("**1, 3**", [0, 2]),
        ("Answer: 1, 3", [0, 2]),
        ("2, 2, 2", [1]),
        ("\n\n  2  \n", [1]),
        ("2\n\nStep 4. 1, 2, 3, 4", [1]),
        ("none", []),
        ("None.", []),
        ("[none]", []),
        ("[]", []),
        ('["1", 3]', [0, 2]),
        ('{"liked": [3, 1, 3]}', [0, 2]),
        ('{\n  "liked": [\n    1\n  ]\n}', [0]),
        ('```json\n{"liked": [4]}\n```', [3]),
        ("```\n1, 4\n```", [0, 3]),
        ('{"liked": []} I hope this helps.', []),
    ],
)
def test_courtesies_are_understood(said: str, places: list[int]) -> None:
    assert parse(said, numbers(4), truncated=False) == (ANSWERED, places)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "  \n \n",
        "5",
        "0",
        "1, 5",
        "-1",
        "1.5",
        "1 3",
        "01",
        "1, 3, none",
        "I think that 1 and 3 fit.",
        "1, 3 because they are comedies",
        "The user liked none of them",
        "<think>",
        "1,",
        ", 1",
        '"1"',
        "true",
        "[true]",
        "[1.0]",
        "[[1]]",
        '[1, "x"]',
        '{"liked": 1}',
        '{"disliked": [1]}',
        '{"liked": [1}',
        "null",
        "[" * 100_000,
        "٣",
    ],
)
def test_anything_else_is_unparseable(said: str) -> None:
    assert parse(said, numbers(4), truncated=False) == (UNPARSEABLE, [])


@given(st.text(), st.booleans())
@example("{", True)
@example('"', False)
def test_whatever_is_said_has_a_status(said: str, truncated: bool) -> None:
    status, places = parse(said, numbers(4), truncated=truncated)
    assert status in (ANSWERED, UNPARSEABLE, TRUNCATED)
    assert status == ANSWERED or not places
    assert set(places) <= {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("said", "status", "places"),
    [
        # With one more token it might have been 12, or gone on.
        ("1", TRUNCATED, []),
        ("1, ", TRUNCATED, []),
        ("I think", TRUNCATED, []),
        ("", TRUNCATED, []),
        ('{"liked": [1', TRUNCATED, []),
        ('{\n "liked": [1,\n', TRUNCATED, []),
        # Complete, and then some more.
        ("1, 2\nStep 4. The person", ANSWERED, [0, 1]),
        ('{"liked": [1]}', ANSWERED, [0]),
        ("I think\nthat", UNPARSEABLE, []),
    ],
)
def test_what_was_cut_off_counts_only_if_it_is_complete(
    said: str, status: str, places: list[int]
) -> None:
    assert parse(said, numbers(12), truncated=True) == (status, places)


def test_titles_are_matched_whole_and_among_the_candidates_only() -> None:
    assert parse(f"{TITLES[1]} and {TITLES[0]}", TITLES, truncated=False) == (ANSWERED, [0, 1])
    assert parse('{"liked": ["7", "A, B and C"]}', TITLES, truncated=False) == (ANSWERED, [1, 3])
    assert parse('{"liked": [7]}', TITLES, truncated=False) == (ANSWERED, [3])
    for said in ('"A"', "7", '"A, B"', '"Heat"', '"7", "Heat"', '"a, b and c"'):
        assert parse(said, TITLES, truncated=False) == (UNPARSEABLE, [])


def test_a_title_that_is_shown_twice_picks_both() -> None:
    shown = ('"Hamlet"', '"Heat"', '"Hamlet"')
    assert parse('"Hamlet"', shown, truncated=False) == (ANSWERED, [0, 2])
    assert not re.fullmatch(pattern(shown), '"Hamlet", "Hamlet"')


def test_a_word_is_one_token() -> None:
    assert answer_room(None) == 1
