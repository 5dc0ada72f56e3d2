"""Bars on a terminal, lines in logs."""

import io
import sys

import pytest

from igmask import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def log(tmp_path):
    progress.log_to(tmp_path / "deep" / "x.log")
    yield tmp_path / "deep" / "x.log"
    progress.log_to(None)


def test_items_come_through_and_the_log_has_lines(log, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    items = list(progress.progress("abc", total=3, unit="letters", label="read"))
    assert items == ["a", "b", "c"]
    lines = log.read_text().splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("read: 100% 3/3")
    assert "letters/s" in lines[-1]
    assert capsys.readouterr().err.splitlines() == lines


def test_lines_are_seldom(log):
    list(progress.progress(range(1000), total=1000, unit="x", label="count"))
    assert len(log.read_text().splitlines()) == 1


def test_a_terminal_shows_a_bar(log, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(progress.progress(range(5), total=5, unit="images", label="decode"))
    assert "decode:" in terminal.getvalue()
    assert "0/5" in terminal.getvalue()
    assert log.read_text().startswith("decode: 100% 5/5")


def test_an_empty_run_says_nothing(log):
    assert list(progress.progress([], total=0, unit="x", label="none")) == []
    assert log.read_text() == ""
