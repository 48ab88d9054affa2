"""Recipes survive TOML, and say what is wrong with one that is wrong."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm_engine.errors import RecipeError
from dfm_engine.fomm.train_recipe import TrainFommRecipe
from dfm_engine.recipe import (
    BuildRecipe,
    describe,
    load_recipe,
    parse_recipe,
    recipe_hash,
    to_toml,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return recipes(typing.cast(type, hint))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values_of(option) for option in arguments if option is not type(None)))
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=3)
    integers = st.integers(-(2**63), 2**63 - 1)
    return {int: integers, float: FINITE, bool: st.booleans(), str: NAMES}[hint]


def recipes(recipe_type: type) -> st.SearchStrategy[Any]:
    """Recipes of any values that the type accepts."""
    hints = typing.get_type_hints(recipe_type)

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        drawn = {f.name: draw(values_of(hints[f.name])) for f in dataclasses.fields(recipe_type)}
        kept: dict[str, Any] = {}
        for name, value in drawn.items():  # a value out of range keeps its default
            try:
                recipe_type(**{**kept, name: value})
            except RecipeError:
                continue
            kept[name] = value
        return recipe_type(**kept)

    return build()


@settings(max_examples=40)
@given(recipes(BuildRecipe))
def test_any_recipe_survives_toml(recipe: BuildRecipe):
    again = parse_recipe(to_toml(recipe), BuildRecipe)
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)


def test_a_recipe_writes_every_field_out():
    table = tomllib.loads(to_toml(BuildRecipe()))
    for key, default, text in describe(BuildRecipe):
        value: Any = table
        for part in key.split("."):
            value = value[part]
        assert value == (list(default) if isinstance(default, tuple) else default)
        assert text, f"{key} has no description"


def test_the_hash_changes_with_any_field():
    base = BuildRecipe()
    others = [
        base,
        dataclasses.replace(base, name="x"),
        dataclasses.replace(base, clips=dataclasses.replace(base.clips, max_frames=9)),
        dataclasses.replace(base, screen=dataclasses.replace(base.screen, overlaps=())),
    ]
    assert len({recipe_hash(recipe) for recipe in others}) == len(others)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[clips]\nmax_frame = 9", r"clips: unknown key 'max_frame'; did you mean 'max_frames'\?"),
        ("[clip]\nfps = 25", r"unknown key 'clip'; did you mean 'clips'\?"),
        ("zzz = 1", "unknown key 'zzz'; known are kind, name"),
        ("[clips]\nfps = 25.5", "fps must be int, found 25.5"),
        ("[clips]\nfps = true", "fps must be int, found True"),
        ("[faces]\nmin_score = 'high'", "min_score must be float, found 'high'"),
        ("[faces]\nmin_score = 1.5", r"faces.min_score must be within 0..1, found 1.5"),
        ("[limits]\nframes = 0", "limits.frames must be positive, found 0"),
        ("[motion]\nmode = 'relative'", "must be one of .*'rel_adapt'.*found 'relative'"),
        ("clips = 3", "clips must be a table, found 3"),
        ("[screen]\noverlaps = 'nod'", "overlaps must be a list, found 'nod'"),
        ("[screen.thresholds]\nnod = 3", r"thresholds.nod must be a table, found 3"),
        ("[splits]\ntrain = 0.9\nval = 0.2", "must be positive and sum below 1"),
        ("kind = 'train_fomm'", "is a 'train_fomm' recipe, a 'build' recipe is needed"),
        ("name = ", "not TOML"),
    ],
)
def test_a_wrong_recipe_says_where_and_what(text: str, message: str):
    with pytest.raises(RecipeError, match=message) as error:
        parse_recipe(text, BuildRecipe, origin="mine.toml")
    assert error.value.exit_code == 2
    if "splits" not in text and "must be" not in message[:20]:
        assert "found" in str(error.value) or "mine.toml" in str(error.value)


def test_a_whole_number_serves_as_a_float():
    assert parse_recipe("[limits]\nduration_s = 60", BuildRecipe).limits.duration_s == 60.0


@pytest.mark.parametrize(
    ("recipe_type", "names"),
    [
        (BuildRecipe, ["demo", "paper", "smoke"]),
        (TrainFommRecipe, ["demo", "paper", "paper-adv", "smoke"]),
    ],
)
def test_shipped_recipes_load_and_say_what_they_are(recipe_type, names):
    for name in names:
        recipe = load_recipe(name, recipe_type)
        assert recipe.name == name
        assert recipe.description
        assert parse_recipe(to_toml(recipe), recipe_type) == recipe


def test_the_papers_recipe_is_the_papers():
    recipe = load_recipe("paper", BuildRecipe)
    assert (recipe.plan.per_action, recipe.plan.fakes_per_source) == (1000, 1)
    assert (recipe.clips.fps, recipe.screen.mode) == (25, "enforce")


def test_an_unknown_name_and_an_absent_file_are_told_apart(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"'papr': shipped are demo, paper, smoke; .* \.toml"):
        load_recipe("papr", BuildRecipe)
    with pytest.raises(RecipeError, match=r"none\.toml: No such file"):
        load_recipe(tmp_path / "none.toml", BuildRecipe)
