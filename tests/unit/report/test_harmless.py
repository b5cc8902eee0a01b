"""Ids and names from outside are harmless in pages, tables and LaTeX."""

import csv
import html.parser
import io
from dataclasses import replace

import numpy as np
import pytest

from mtil.report.elements import Frame, Picture, Report, Section, Strip, Table
from mtil.report.files import escape_latex, to_csv, to_latex
from mtil.report.gallery.cards import Card, make_anchor
from mtil.report.page import render_page

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; alert(1); '",
    "</script><b>",
    "../../etc/passwd",
    '=HYPERLINK("http://example.org")',
    "@SUM(A1)",
    "-2+3",
    "0.5",
    "line\nbreak\ttab",
    "\u202eright to left\u202c",
    "{{ 7 * 7 }}",
    r"\input{/etc/passwd} $x$ 50 % a_b #1 ~ ^ {c}",
    "javascript:alert(1)",
    "a%20b c",
)


class _Reader(html.parser.HTMLParser):
    """Collect the tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _card(text: str) -> Card:
    return Card(
        sample_id=text,
        anchor=make_anchor(text),
        label="benign",
        source=text,
        fold=0,
        dice=0.5,
        probability=0.5,
        called="benign",
        lesion_probability=None,
        spread=None,
        size=10,
        problems=("wrong",),
        width=4,
        height=3,
        thumbnail="data:image/webp;base64,AA==",
        layers={"outlines-0": "data:image/png;base64,AA=="},
        gray=np.zeros((4, 4), np.uint8),
    )


def _report(text: str) -> Report:
    table = Table(name="t", title=text, columns=(text, "b"), rows=((text, 1.0),), note=text)
    picture = Picture(name=text, image="data:image/webp;base64,AA==")
    strip = Strip(title=text, frames=(Frame(caption=text, pictures=(picture,)),), note=text)
    section = Section(name="s", title=text, paragraphs=(text,), tables=(table,), strips=(strip,))
    return Report(
        title=text,
        summary=text,
        warnings=(text,),
        headline=None,
        sections=(section,),
        cards=[_card(text)],
        layers=(("outlines-0", "outlines"),),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_shows_text_and_obeys_none_of_it(text: str) -> None:
    def read(word: str) -> _Reader:
        reader = _Reader()
        reader.feed(render_page(_report(word)))
        return reader

    harmless, hostile = read("harmless"), read(text)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    for (_, expected), (tag, attributes) in zip(harmless.tags, hostile.tags, strict=True):
        assert attributes.keys() - {"class"} == expected.keys() - {"class"}, tag
        for name in ("href", "src"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), value
    assert text in "".join(hostile.text)
    (article,) = (attributes for tag, attributes in hostile.tags if tag == "article")
    assert article["data-id"] == text
    assert article["id"] is not None
    assert not set(article["id"]) & set(" \t\n\"'<>")


def test_commands_in_warnings_are_code_and_their_content_text() -> None:
    page = render_page(_report("run `mtil <b> & x` now"))
    assert "<li>run <code>mtil &lt;b&gt; &amp; x</code> now</li>" in page


def test_anchors_of_different_images_differ() -> None:
    assert len({make_anchor(text) for text in HOSTILE}) == len(HOSTILE)
    assert make_anchor("benign (1)") == "image-benign%20%281%29"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_csv_file_holds_no_formula(text: str) -> None:
    table = replace(_report(text).tables()[0], rows=((text, -0.5),))
    head, row = csv.reader(io.StringIO(to_csv(table)))
    assert row[0] in (text, f"'{text}")
    for cell in (head[0], row[0]):
        assert not cell.startswith(("=", "@", "+", "\t"))
        assert not cell.startswith("-") or cell == "-2+3"
    assert row[1] == "-0.5"


def test_signed_figures_stay_numbers_for_spreadsheets() -> None:
    table = Table(name="t", title="t", columns=("a",), rows=(("+0.013 [-0.005, +0.034]",),))
    assert to_csv(table) == 'a\n"+0.013 [-0.005, +0.034]"\n'


def test_latex_shows_what_it_would_obey() -> None:
    assert escape_latex(r"\input{x}") == r"\textbackslash{}input\{x\}"
    assert escape_latex("50 % a_b & #1 $x$") == r"50 \% a\_b \& \#1 \$x\$"
    assert escape_latex("a\n\u202eb~^") == r"a b\textasciitilde{}\textasciicircum{}"
    table = Table(name="t", title="a\nb", columns=("x", "y"), rows=(("p & q", 0.5),))
    assert to_latex(table) == (
        "% a b\n\\begin{tabular}{lr}\n\\toprule\nx & y \\\\\n\\midrule\np \\& q & 0.500 \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )
