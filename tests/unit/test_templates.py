from pathlib import Path

import polars as pl
import pytest
import yaml
from feedback_data import TEMPLATES
from hypothesis import given
from hypothesis import strategies as st

from refine.feedback.templates import Template, TemplateError, fill, read_template

TEXTS = {
    "version": 1,
    "instructions": "Judge.",
    "named": "From {dataset}.",
    "context": "{favourites} {example} {example_answer}",
    "question": "{candidates}",
    "cue": "Answer:",
}


def read(folder: Path, **changes: object) -> Template:
    path = folder / "template.yaml"
    path.write_text(yaml.safe_dump(TEXTS | changes))
    return read_template(path)


@pytest.mark.parametrize("name", ["numbers", "titles", "score"])
def test_the_shipped_templates(name: str) -> None:
    template = read_template(TEMPLATES / f"{name}.yaml")
    assert template.words == (("yes", "no") if name == "score" else None)
    texts = [template.instructions, template.named, template.context, template.question]
    assert all(text == text.strip() and "  " not in text for text in texts)
    assert "\n" not in template.instructions + template.named + template.cue


def test_texts_come_without_white_space_around_them(tmp_path: Path) -> None:
    assert read(tmp_path, context="\n {favourites}\n\n", cue=" A: ") == Template(
        1, "Judge.", "From {dataset}.", "{favourites}", "{candidates}", "A:", None
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "{candidate}"}, r"\{candidate\} in question, .* have \{candidates\}"),
        ({"question": "none"}, r"question has no \{candidates\}"),
        ({"question": "{candidates} {favourites}"}, r"\{favourites\} in question"),
        ({"context": "{candidates}"}, r"\{candidates\} in context, .* have \{favourites\}"),
        ({"instructions": "{dataset}"}, r"\{dataset\} in instructions, .* nothing in braces"),
        ({"cue": "  "}, "cue has to be a text"),
        ({"named": 3}, "named has to be a text, not 3"),
        ({"version": "1"}, "version has to be a whole number"),
        ({"version": True}, "version has to be a whole number"),
        ({"wording": "new"}, "unknown: wording; known: version, instructions"),
        ({"words": [True, False]}, "two different words in quotation marks.*yes for true"),
        ({"words": ["yes", "yes"]}, "two different words"),
        ({"words": ["yes please", "no"]}, "two different words"),
        ({"words": ["yes", ""]}, "two different words"),
        ({"words": []}, "two different words"),
        ({"words": ["yes", "no"]}, r"with words there is no \{example_answer\}"),
    ],
)
def test_templates_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(TemplateError, match=message):
        read(tmp_path, **changes)


@pytest.mark.parametrize("missing", list(TEXTS))
def test_no_text_may_be_missing(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(yaml.safe_dump({name: TEXTS[name] for name in TEXTS if name != missing}))
    with pytest.raises(TemplateError, match=f"{path}: {missing} has to be"):
        read_template(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "is not YAML"),
        (b"a: [", "is not YAML"),
        (b"Judge {candidates}", "is no mapping"),
        (b"", "is no mapping"),
    ],
)
def test_files_that_are_no_templates(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "template.yaml"
    path.write_bytes(content)
    with pytest.raises(TemplateError, match=message):
        read_template(path)


@given(
    favourites=st.one_of(st.text(), st.just("{example} {candidates} {}")),
    example=st.one_of(st.text(), st.just("{favourites}")),
)
def test_values_are_put_in_and_not_searched(favourites: str, example: str) -> None:
    columns = pl.DataFrame({"favourites": [favourites], "example": [example]})
    filled = columns.select(fill('{"a": []} {favourites}{example} {} {{favourites}}')).item()
    assert filled == '{"a": []} ' + favourites + example + " {} {" + favourites + "}"
