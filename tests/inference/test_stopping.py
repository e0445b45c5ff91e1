"""Stop strings across any cut of the text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.inference.stopping import StopMatcher


def _run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.feed(piece) for piece in pieces)
    return shown + ("" if matcher.matched else matcher.flush()), matcher.matched


def test_text_held_for_a_stop_string_that_never_comes_is_not_lost() -> None:
    assert _run(["hello", " world", " and"], ["world and more"]) == ("hello world and", False)


def test_a_stop_string_over_three_pieces_ends_the_text_before_it() -> None:
    assert _run(["ab", "c", "de", "f"], ["bcd"]) == ("a", True)


def test_nothing_that_may_be_part_of_a_stop_string_is_shown_early() -> None:
    matcher = StopMatcher(["\n\n"])
    assert [matcher.feed("one\n"), matcher.feed("two"), matcher.feed("\n\nthree")] == ["one", "\ntwo", ""]


def test_the_earliest_of_several_stop_strings_wins() -> None:
    assert _run(["xx-end-stop"], ["stop", "end"]) == ("xx-", True)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_the_result_does_not_depend_on_the_cuts(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, matched = _run(pieces, stops)
    assert matched == any(stop in text for stop in stops)
    assert text.startswith(shown) and not any(stop in shown for stop in stops)
    if not matched:
        assert shown == text
