"""What a user reads is one line that a screen can show."""

from __future__ import annotations

import pytest

from scoretune.core.errors import LONGEST, UserError, first_line, listed, one_line, unknown, visible


def test_what_a_terminal_would_obey_is_shown_instead():
    assert visible("a\x1b[31mb\x07\x9b\u202e\ud83d") == r"a\x1b[31mb\x07\x9b\u202e\ud83d"
    assert visible("é 😀 日本 ρ̂") == "é 😀 日本 ρ̂"
    assert str(UserError("server said \x1b]0;owned\x07\n\tand more")) == (
        r"server said \x1b]0;owned\x07 and more"
    )
    assert first_line(ValueError("\n  a\x00\nb")) == r"a\x00"


def test_a_short_line_stays_as_it_is():
    text = "unknown key 'a': choose one of: b, c, d, e, f"
    assert one_line(text) == text and one_line("x" * LONGEST) == "x" * LONGEST


def test_a_list_loses_its_end_and_says_how_much():
    names = [f"layers.{i}.weight" for i in range(4000)]
    line = one_line(f"the model 'm' lacks {', '.join(names)}: fetch it again")
    assert len(line) <= LONGEST
    assert line.startswith("the model 'm' lacks layers.0.weight, layers.1.weight, ")
    shown = line.count("weight")
    assert line.endswith(f" … and {4000 - shown} more, layers.3999.weight: fetch it again")


def test_any_other_text_loses_its_middle():
    line = one_line(f"cannot read {'q' * 5000!r}: give another file")
    assert len(line) == LONGEST and " … " in line
    assert line.startswith("cannot read 'qqq") and line.endswith("q': give another file")


def test_names_are_listed_as_far_as_there_is_room():
    assert listed(["a", "b"]) == "a, b" and listed([]) == ""
    assert listed(["aaaa", "bbbb", "cccc"], most=12) == "aaaa, bbbb … and 1 more"
    assert listed(["a" * 500], most=12) == "a" * 500  # one at least: the line is cut later
    error = unknown("key", "zzz", [f"name{i:03}" for i in range(999)])
    assert len(str(error)) < LONGEST and str(error).endswith(" more")


@pytest.mark.parametrize("kind", [UserError, *UserError.__subclasses__()])
def test_every_kind_of_user_error_is_one_line(kind):
    assert len(str(kind("a\n" * 1000))) <= LONGEST and "\n" not in str(kind("a\nb"))
