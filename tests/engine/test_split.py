"""Splits: nobody in two parts, nothing moved by what is added, the authors' order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_engine.actions import Action
from dfm_engine.errors import UsageError
from dfm_engine.recipe import Splits
from dfm_engine.split import SplitRow, assign_splits

KINDS = ("identity-disjoint", "paper-ordered", "random-video")


@st.composite
def data_sets(draw: st.DrawFn) -> list[SplitRow]:
    """Real clips of a few people, and fakes made from some of them."""
    people = draw(st.lists(st.integers(0, 5), min_size=1, max_size=14))
    rows: list[SplitRow] = []
    for number, person in enumerate(people):
        source = f"clip{number}"
        rows.append(SplitRow(identity=f"id{person}", source=source))
        actions = draw(st.lists(st.sampled_from(list(Action)[:3]), max_size=3, unique=True))
        rows += [
            SplitRow(
                identity=f"id{person}",
                source=source,
                action=action,
                place=str(number),
                is_extra=draw(st.booleans()),
            )
            for action in actions
        ]
    return rows


settings_of_any_kind = st.builds(
    Splits, kind=st.sampled_from(KINDS), seed=st.integers(0, 3), train=st.just(0.5)
)


@given(data_sets(), settings_of_any_kind)
def test_split_gives_every_row_a_part_and_keeps_pairs_together(rows, settings) -> None:
    parts = assign_splits(rows, settings=settings)
    assert len(parts) == len(rows)
    assert set(parts) <= {"train", "val", "test"}
    of_source: dict[str, set[str]] = {}
    for row, part in zip(rows, parts, strict=True):
        of_source.setdefault(row.source, set()).add(part)
    assert all(len(found) == 1 for found in of_source.values())


@given(data_sets(), st.integers(0, 5))
def test_split_keeps_every_identity_in_one_part(rows, seed: int) -> None:
    parts = assign_splits(rows, settings=Splits(seed=seed))
    of_person: dict[str, set[str]] = {}
    for row, part in zip(rows, parts, strict=True):
        of_person.setdefault(row.identity, set()).add(part)
    assert all(len(found) == 1 for found in of_person.values())


@given(data_sets(), settings_of_any_kind, st.randoms(use_true_random=False))
def test_split_does_not_depend_on_the_order_of_the_rows(rows, settings, random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = assign_splits([rows[index] for index in order], settings=settings)
    parts = assign_splits(rows, settings=settings)
    assert shuffled == [parts[index] for index in order]


@given(data_sets(), data_sets(), st.sampled_from(["identity-disjoint", "random-video"]))
def test_split_is_stable_when_rows_are_added(rows, more, kind) -> None:
    added = [replace(row, identity=f"x{row.identity}", source=f"x{row.source}") for row in more]
    settings = Splits(kind=kind)
    parts = assign_splits(rows, settings=settings)
    assert assign_splits([*added, *rows], settings=settings)[len(added) :] == parts


@pytest.mark.parametrize("kind", ["identity-disjoint", "random-video"])
def test_split_meets_its_shares_on_average_and_another_seed_draws_anew(kind) -> None:
    rows = [SplitRow(identity=f"id{n}", source=f"s{n}") for n in range(4000)]
    parts = assign_splits(rows, settings=Splits(kind=kind, seed=1))
    counts = Counter(parts)
    # four standard deviations of a binomial count: 4 * sqrt(4000 * p * (1 - p))
    assert abs(counts["train"] - 2800) < 116
    assert abs(counts["val"] - 600) < 91
    assert abs(counts["test"] - 600) < 91
    other = assign_splits(rows, settings=Splits(kind=kind, seed=2))
    agreeing = sum(a == b for a, b in zip(parts, other, strict=True))
    assert abs(agreeing - 4000 * (0.7**2 + 2 * 0.15**2)) < 127


def test_random_video_parts_clips_of_one_person() -> None:
    rows = [SplitRow(identity="ann", source=f"s{n}") for n in range(100)]
    assert len(set(assign_splits(rows, settings=Splits(kind="random-video")))) == 3
    assert len(set(assign_splits(rows, settings=Splits()))) == 1


def test_drawn_parts_are_pinned() -> None:
    """A data set built by one version keeps its parts under the next."""
    rows = [SplitRow(identity=f"id{n}", source=f"s{n}") for n in range(40)]
    assert (
        "".join(p[1] for p in assign_splits(rows, settings=Splits()))
        == "rarrrarrraraerrrrrrrrrrrrerarrarererrrer"
    )
    random_video = assign_splits(rows, settings=Splits(kind="random-video"))
    assert "".join(p[1] for p in random_video) == "arrrarrrarrrarrrrrrraarrrrrrreaerrarrrer"


def test_paper_ordered_gives_700_150_150_of_each_action_and_twins_follow() -> None:
    rows: list[SplitRow] = []
    for number, action in enumerate(Action):
        for place in range(1000):
            source = f"{number}-{place}"
            rows.append(SplitRow(identity="x", source=source, action=action, place=str(place)))
            rows.append(SplitRow(identity="x", source=source))
    parts = assign_splits(rows, settings=Splits(kind="paper-ordered"))
    for row, part in zip(rows, parts, strict=True):
        place = int(row.source.split("-")[1])
        assert part == ("train" if place < 700 else "val" if place < 850 else "test")


def test_paper_ordered_reads_places_in_natural_order_and_qualities_once() -> None:
    names = ["clip1", "clip2", "clip3", "clip10", "clip11", "clip12", "clip20", "clip21"]
    rows = [
        SplitRow(identity="x", source=name, action=Action.NOD, place=name)
        for name in sorted(names)
        for _quality in range(3)
    ]
    settings = Splits(kind="paper-ordered", train=0.5, val=0.25)
    parts = dict(
        zip([row.source for row in rows], assign_splits(rows, settings=settings), strict=True)
    )
    assert [parts[name] for name in names] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2


def test_paper_ordered_counts_no_extras_and_lets_the_first_fake_decide() -> None:
    def fake(source: str, action: Action, place: int, is_extra: bool = False) -> SplitRow:
        return SplitRow(
            identity="x", source=source, action=action, place=str(place), is_extra=is_extra
        )

    rows = [fake(f"s{n}", Action.BLINK, n) for n in range(10)]
    rows += [fake("s9", Action.NOD, 0), fake("n1", Action.NOD, 1)]
    rows += [fake("s0", Action.BLINK, 10, True), fake("e", Action.BLINK, 11, True)]
    rows += [SplitRow(identity="x", source=f"r{n}", place=str(n)) for n in range(10)]
    settings = Splits(kind="paper-ordered", train=0.7, val=0.2)
    parts = assign_splits(rows, settings=settings)
    assert parts[:10] == ["train"] * 7 + ["val"] * 2 + ["test"]
    assert parts[10:12] == ["test", "val"]  # s9 stays with its blink; two nods end train at one
    assert parts[12:14] == ["train", "test"]
    assert parts[14:] == ["train"] * 7 + ["val"] * 2 + ["test"]


def test_a_source_under_two_identities_is_refused() -> None:
    rows = [SplitRow(identity="a", source="s"), SplitRow(identity="b", source="s")]
    with pytest.raises(UsageError, match="'s' has two identities, 'a' and 'b'"):
        assign_splits(rows, settings=Splits())
    with pytest.raises(UsageError, match="must not be blank"):
        SplitRow(identity="", source="s")
