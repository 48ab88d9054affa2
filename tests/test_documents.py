"""What the documents tell people to type is what the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

from dfm_engine.cli import app

REPO = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/inputs.md", "docs/manifest.md")
PROGRAM = "dfm-engine"


def typed(text: str) -> list[str]:
    """Commands of indented blocks, lines joined, without what is explained behind a gap."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line.strip() for line in joined.splitlines() if line.startswith("    ")]
    return [re.split(r"\s{2,}", x)[0] for x in lines if x.startswith(f"{PROGRAM} ")]


def mentioned(text: str) -> list[str]:
    """Commands within sentences, which may leave out what is required."""
    found = re.findall(rf"`({PROGRAM} [^`]+)`", re.sub(r"\s*\n\s*", " ", text))
    return [re.split(r" \||\.\.\.", command)[0] for command in found]


def find(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and the words behind its name."""
    command: Any = typer.main.get_command(app)
    assert words[0] == PROGRAM
    rest = words[1:]
    while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{' '.join(words)}: no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def refusal(line: str) -> str | None:
    """What the command line has against a command, which is not run."""
    command, rest = find(shlex.split(line, comments=True))
    try:
        command.make_context(PROGRAM, rest)
    except Exception as error:  # typer brings its own click, and its errors
        return str(error) or repr(error)
    return None


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_is_taken_by_the_command_line(document: str) -> None:
    text = (REPO / document).read_text(encoding="utf-8")
    for line in typed(text):
        assert refusal(line) is None, f"{document}: {line!r}"
    for line in mentioned(text):
        command, rest = find(shlex.split(line))
        options = {name for parameter in command.params for name in parameter.opts}
        asked = {word.split("=")[0] for word in rest if word.startswith("--") and word != "--"}
        assert asked <= options, f"{document}: {line!r}"


def test_the_readme_shows_commands_and_each_of_them_in_json() -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    shown = {find(shlex.split(line))[0].name for line in typed(text)}
    assert {"probe", "build-dataset", "prepare", "score", "fomm", "detector", "bench"} <= shown
    assert len(typed(text)) > 15


def test_a_wrong_word_in_a_document_is_seen() -> None:
    """Of the readers above: what they find, and what they make of it."""
    text = (
        "say `dfm-engine prepare\n--frames 4`:\n\n    dfm-engine probe a \\\n      --json    why\n"
    )
    assert typed(text) == ["dfm-engine probe a --json"]
    assert refusal(typed(text)[0]) is None
    assert mentioned(text) == ["dfm-engine prepare --frames 4"]
    assert "--actions" in (refusal("dfm-engine screen clip.mp4 --actions nod") or "")
    assert "action" in (refusal("dfm-engine screen clip.mp4") or "")
    with pytest.raises(AssertionError, match="no command 'learn'"):
        find(["dfm-engine", "learn"])
