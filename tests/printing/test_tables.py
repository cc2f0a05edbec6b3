from __future__ import annotations

from dcsurgery.printing.tables import lay_out, wrap

ROWS = [
    ("family", "tower", "count"),
    ("llava", "CLIP, SigLIP, Pixtral", "1"),
    ("paligemma", "SigLIP", "12"),
]


def test_a_table_that_fits_has_a_line_per_row() -> None:
    assert lay_out(ROWS, "wlr", 80) == [
        "family     tower                  count",
        "llava      CLIP, SigLIP, Pixtral      1",
        "paligemma  SigLIP                    12",
    ]


def test_a_narrow_table_wraps_between_words() -> None:
    assert lay_out(ROWS[1:], "wlr", 24) == [
        "llava      CLIP,       1",
        "           SigLIP,",
        "           Pixtral",
        "paligemma  SigLIP     12",
    ]


def test_a_table_too_narrow_for_its_words_cuts_none() -> None:
    assert lay_out(ROWS[1:], "wlr", 5) == lay_out(ROWS[1:], "wlr", 22)
    assert "Pixtral" in "".join(lay_out(ROWS, "wlr", 5))


def test_the_widest_column_gives_way_first() -> None:
    rows = [("a b c d", "one two three four five six")]
    assert lay_out(rows, "ll", 22) == ["a b c d  one two three", "         four five six"]


def test_lines_of_a_cell_stay_and_indents_carry_over() -> None:
    assert wrap("a\n  b c dddd", 5) == ["a", "  b c", "  dddd"]
    assert wrap("", 5) == [""] and wrap("model-00001-of-00003", 5) == ["model-00001-of-00003"]
