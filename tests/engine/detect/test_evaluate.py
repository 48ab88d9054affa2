"""An evaluation against numbers computed by hand from its own table of scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from dfmtest_detector import PixelRunner
from dfmtest_store import make_store, write_store
from PIL import Image

from dfm_engine.detect.evaluate import people_trained_on, read_groups, run_evaluate_detector
from dfm_engine.detect.evaluation_plots import PLOTS
from dfm_engine.detect.evaluation_scores import score_store
from dfm_engine.detect.metrics import measure
from dfm_engine.detect.models import create_detector
from dfm_engine.detect.runner import TorchDetectorRunner
from dfm_engine.errors import CheckFailed, InputError, UsageError
from dfm_engine.store.frames import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """12 people, 2 fakes each, three qualities, four frames; fakes are a little brighter."""
    return make_store(
        tmp_path_factory.mktemp("stores") / "a", identities=12, fakes=2, signal=1.5, seed=1
    )


@pytest.fixture(scope="module")
def result_and_rows(store: Store, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("evaluation")
    result = run_evaluate_detector(PixelRunner(), store, out=out, replicates=100)
    return result, pq.read_table(out / "scores.parquet").to_pylist(), out


def test_every_frame_of_the_split_is_scored_once_and_written(result_and_rows, store) -> None:
    _, rows, _ = result_and_rows
    test = [clip for clip in store.index.clips if clip.split == "test"]
    assert len(rows) == sum(clip.frames for clip in test) == 4 * 3 * 3 * 4
    assert len({(row["path"], row["frame"]) for row in rows}) == len(rows)
    runner = PixelRunner()
    by_path = {clip.path: clip for clip in test}
    for row in rows[::17]:
        clip = by_path[row["path"]]
        place = list(store.index.frame[list(clip.rows)]).index(row["frame"])
        picture = store.read(np.array([clip.first_row + place]))
        expected = runner.run(torch.from_numpy(picture)).fake.item()
        assert row["p_fake"] == pytest.approx(expected, abs=1e-7)
        assert (row["label"], row["action"], row["quality"]) == (
            clip.label,
            clip.action,
            clip.quality,
        )


def test_metrics_are_those_of_the_written_scores(result_and_rows) -> None:
    result, rows, out = result_and_rows
    p = np.array([row["p_fake"] for row in rows])
    y = np.array([row["label"] == "fake" for row in rows])
    assert result.slice().frames.metrics == measure(p, y)
    assert 0.55 < result.slice().frames.metrics.auc < 0.999  # neither blind nor trivial
    paths = sorted({row["path"] for row in rows})
    means = [np.mean([r["p_fake"] for r in rows if r["path"] == path]) for path in paths]
    labels = ["fake" in path.split("/") for path in paths]
    found = dataclasses.asdict(result.slice().videos.metrics)
    assert found == pytest.approx(dataclasses.asdict(measure(means, labels)))
    assert result.slice().videos.metrics.fakes == 4 * 2 * 3
    c23 = [k for k, row in enumerate(rows) if row["quality"] == "c23"]
    assert result.slice("c23").frames.metrics == measure(p[c23], y[c23])
    saved = json.loads((out / "evaluate.json").read_text())
    assert saved == json.loads(json.dumps(result.to_json()))
    assert saved["slices"][0]["videos"]["auc"] == result.slice().videos.metrics.auc


def test_actions_are_judged_on_their_own_fakes_and_against_all_real_videos(
    result_and_rows,
) -> None:
    result, rows, _ = result_and_rows
    real = {row["path"] for row in rows if row["label"] == "real"}
    assert [row.action for row in result.actions][-1] == "real"
    assert sum(row.videos for row in result.actions) == len({row["path"] for row in rows})
    for action in result.actions[:-1]:
        own = {row["path"] for row in rows if row["action"] == action.action}
        means = {
            path: np.mean([r["p_fake"] for r in rows if r["path"] == path]) for path in own | real
        }
        assert action.videos == len(own)
        assert action.accuracy == pytest.approx(np.mean([means[path] > 0.5 for path in own]))
        wins = [(means[f] > means[r]) + 0.5 * (means[f] == means[r]) for f in own for r in real]
        assert action.auc == pytest.approx(np.mean(wins))
        frames = [row["p_fake"] for row in rows if row["path"] in own]
        assert action.accuracy_frames == pytest.approx(np.mean(np.array(frames) > 0.5))
        assert action.interval is not None
        assert action.interval.low <= action.accuracy <= action.interval.high
    assert result.actions[-1].accuracy == result.slice().videos.metrics.accuracy_real


def test_people_are_listed_the_hardest_first(result_and_rows) -> None:
    result, rows, _ = result_and_rows
    assert [row.identity for row in result.people] != sorted(row.identity for row in result.people)
    accuracies = [row.accuracy for row in result.people]
    assert accuracies == sorted(accuracies)
    assert {row.identity for row in result.people} == {row["identity"] for row in rows}
    assert all((row.fakes, row.reals) == (6, 3) for row in result.people)


def test_videos_of_one_name_in_two_folders_stay_two_videos(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", identities=6, qualities=("c23",), signal=40)
    clips = [
        dataclasses.replace(clip, path=f"{clip.label}/{index // 2}/000_003.mp4")
        for index, clip in enumerate(store.index.clips)
    ]
    frames = [store.read(np.array(clip.rows)) for clip in store.index.clips]
    named = write_store(tmp_path / "b", store.meta, clips, frames)
    result = run_evaluate_detector(PixelRunner(), named, split="all", replicates=10)
    assert result.data["videos"] == 12
    assert (result.slice().videos.metrics.fakes, result.slice().videos.metrics.reals) == (6, 6)


def test_a_clips_qualities_are_drawn_together(store: Store) -> None:
    """Three nearly equal copies of every clip must not narrow the interval."""
    all_three = run_evaluate_detector(PixelRunner(), store, split="all", replicates=400)
    one = run_evaluate_detector(PixelRunner(), store, split="all", quality="c23", replicates=400)

    def width(result) -> float:
        drawn = result.slice().videos.by_clip["accuracy"]
        return drawn.high - drawn.low

    assert width(all_three) > 0.8 * width(one)


def test_frames_are_evenly_spaced_among_those_stored(store: Store) -> None:
    clips = [clip for clip in store.index.clips if clip.split == "val"]
    scores = score_store(PixelRunner(), store, clips, frames=2)
    assert len(scores) == 2 * len(clips)
    assert scores.frame[:2].tolist() == [10, 30]  # the second and fourth stored, of 0 10 20 30
    counted: list[tuple[int, int]] = []
    runner = PixelRunner()
    score_store(runner, store, clips, progress=lambda done, total: counted.append((done, total)))
    assert set(runner.batches[:-1]) == {runner.max_batch}
    assert counted[-1] == (4 * len(clips), 4 * len(clips))


def test_people_of_the_training_are_a_warning_that_stands_in_the_result(store: Store) -> None:
    people = sorted({clip.identity for clip in store.index.clips if clip.split == "test"})
    leaky = run_evaluate_detector(
        PixelRunner(), store, trained_on=[people[1], "somebody"], replicates=10
    )
    assert leaky.leak["shared_identities"] == [people[1]]
    assert "trained on 1 of the 4 people" in leaky.warnings[0]
    assert "in 9 of its 36 videos" in leaky.warnings[0]
    assert leaky.warnings[0] in leaky.table()
    clean = run_evaluate_detector(PixelRunner(), store, trained_on=["somebody"], replicates=10)
    assert clean.warnings == ()
    assert clean.leak["is_checked"]
    unknown = run_evaluate_detector(PixelRunner(), store, replicates=10)
    assert "nobody knows" in unknown.warnings[0]
    assert unknown.leak == {"is_checked": False}


def test_who_a_run_was_trained_on_is_read_from_its_folder(tmp_path: Path) -> None:
    weights = tmp_path / "detector.safetensors"
    weights.touch()
    assert people_trained_on(tmp_path) is None
    (tmp_path / "detector.json").write_text('{"train_identities": ["a", "b"]}')
    assert people_trained_on(tmp_path) == people_trained_on(weights) == ["a", "b"]
    (tmp_path / "detector.json").write_text("{")
    with pytest.raises(InputError, match="detector"):
        people_trained_on(tmp_path)


def test_groups_of_people_have_their_own_metrics(store: Store, tmp_path: Path) -> None:
    people = sorted({clip.identity for clip in store.index.clips if clip.split == "test"})
    table = tmp_path / "groups.csv"
    table.write_text(
        "identity,group\n"
        + "".join(f"{p},{'odd' if i % 2 else 'even'}\n" for i, p in enumerate(people[:3]))
    )
    result = run_evaluate_detector(PixelRunner(), store, groups=read_groups(table), replicates=10)
    assert result.slice("even").identities == 2
    assert result.slice("odd").videos.metrics.fakes == 6
    assert any(note.startswith("1 people of this evaluation") for note in result.notes)
    table.write_text("who,group\na,b\n")
    with pytest.raises(InputError, match="identity,group"):
        read_groups(table)


def test_real_as_positive_turns_what_precision_is_about(store: Store) -> None:
    fake = run_evaluate_detector(PixelRunner(), store, replicates=10).slice().videos.metrics
    real = run_evaluate_detector(PixelRunner(), store, positive="real", replicates=10)
    found = real.slice().videos.metrics
    assert found.auc == pytest.approx(fake.auc)
    assert found.accuracy_fake == fake.accuracy_fake
    assert found.average_precision != pytest.approx(fake.average_precision)
    assert "real is the positive class" in real.notes[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "Test"}, "--split takes train, val, test, all"),
        ({"quality": "c24"}, "--quality takes raw, c23, c40"),
        ({"positive": "fakes"}, "--positive takes fake or real"),
    ],
)
def test_words_that_do_not_exist_are_refused(store: Store, options: dict, said: str) -> None:
    runner = PixelRunner()
    with pytest.raises(UsageError, match=said):
        run_evaluate_detector(runner, store, **options)
    assert runner.batches == []  # before any work


def test_a_store_without_the_split_says_what_it_holds(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", identities=2, qualities=("c23",))
    with pytest.raises(
        UsageError, match=r"0 clips; both classes.*train c23 fake.*choose among them"
    ):
        run_evaluate_detector(PixelRunner(), store)


def test_a_detector_that_gives_no_probability_is_named_with_the_clip(store: Store) -> None:
    with pytest.raises(CheckFailed, match=r"data/.*mp4: pixels-cpu gave nan .* 36 such"):
        run_evaluate_detector(
            PixelRunner(gain=float("nan")), store, quality="c23", frames=3, replicates=10
        )


def test_an_i420_store_gives_what_the_rgb_store_gives(tmp_path: Path) -> None:
    made = {
        layout: make_store(
            tmp_path / layout, identities=6, size=64, signal=30, layout=layout, qualities=("c23",)
        )
        for layout in ("rgb24", "i420")
    }
    runner = TorchDetectorRunner(create_detector("small-cnn", seed=3))
    scores = [score_store(runner, store, store.index.clips) for store in made.values()]
    # 4:2:0 halves the chroma of this noise; luma carries the rest
    assert scores[0].p_fake == pytest.approx(scores[1].p_fake, abs=0.02)
    same = [score_store(PixelRunner(gain=50), s, s.index.clips) for s in made.values()]
    assert same[0].p_fake == pytest.approx(same[1].p_fake, abs=0.01)
    assert np.ptp(same[0].p_fake) > 0.5


def test_the_pictures_are_drawn(result_and_rows) -> None:
    _, _, out = result_and_rows
    for name in PLOTS:
        picture = np.asarray(Image.open(out / name).convert("L"))
        assert picture.shape[1] > 600
        assert picture.std() > 15  # something is on it
    assert "| all " in (out / "evaluate.md").read_text()


def test_the_same_evaluation_gives_the_same_result(store: Store, result_and_rows) -> None:
    first, _, _ = result_and_rows
    again = run_evaluate_detector(PixelRunner(), store, replicates=100)
    assert dataclasses.replace(again, frames_per_s=first.frames_per_s) == first
