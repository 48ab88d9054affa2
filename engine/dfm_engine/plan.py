"""Which animations to make, in which order: candidates, quotas, waves. Pure logic, no files.

Every action has one ordered list of candidates, (source, driving) pairs. The first N that pass the
screen are kept (N is the action's quota); a source serves at most `fakes_per_source` kept fakes, so
a source refused for one action may serve another.

Candidates are tried in *waves*. A wave takes, round-robin over actions, the next untried candidates
whose quota and source would still be free if everything already passed or under way passes. Which
candidates a wave holds is a function of earlier verdicts alone, never of timing: an interrupted run
continues exactly like an uninterrupted one, and nothing is made that is not wanted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dfm_engine.actions import Action

WAVE_SIZE = 32
"""Candidates per wave: enough to fill a generator batch from many clips, few enough that a quota
which fills early stops early. Part of the output's definition (it decides what is tried), so it is
a constant and not a setting."""


class Outcome(StrEnum):
    """What became of a tried candidate."""

    PASSED = "passed"
    REFUSED = "refused"  # by the screen
    FAILED = "failed"  # quarantined: the job could not be done


@dataclass(frozen=True, slots=True)
class Candidate:
    """One animation that could be made; `source` and `driving` are content hashes."""

    action: Action
    source: str
    driving: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """How many fakes to keep per action (None: all that pass), and per source (0: no bound)."""

    per_action: Mapping[Action, int | None]
    per_source: int = 0

    @classmethod
    def of(
        cls, actions: Sequence[Action], *, per_action: int, per_source: int, limit: int | None
    ) -> Quotas:
        """From a recipe's numbers (0 means no bound) and `--limit`, a total over all actions.

        A limit is dealt round-robin in the paper's order of actions: 25 over ten actions gives the
        first five actions three each and the others two.
        """
        quota: dict[Action, int | None] = {action: per_action or None for action in actions}
        if limit is not None and actions:
            each, rest = divmod(limit, len(actions))
            for index, action in enumerate(sorted(actions, key=list(Action).index)):
                share = each + (index < rest)
                held = quota[action]
                quota[action] = share if held is None else min(held, share)
        return cls(per_action=quota, per_source=per_source)


def order_candidates(
    sources: Sequence[str],
    driving: Sequence[str],
    frames_needed: Mapping[str, int],
    frames_held: Mapping[str, int | None],
    action: Action,
    *,
    seed: int,
) -> Iterator[Candidate]:
    """The candidates of one action in the order they are tried.

    Sources come in a seeded order that differs between actions. In round r the i-th source is
    paired with driving clip (i + r) mod n, so the clips of an action are used evenly from the
    start and every pair occurs once.

    Args:
        sources: content hashes of usable source clips.
        driving: content hashes of the action's usable driving clips, in list order.
        frames_needed: frames of each driving clip.
        frames_held: frames of each source clip; None for a still, which has no real twin. A clip
            shorter than the driving clip is no source for it: its real twin must be as long.
        action: the action of the driving clips.
        seed: from the recipe.
    """
    shuffled = sorted(sources, key=lambda source: _rank(seed, action, source))
    for turn in range(len(driving)):
        for index, source in enumerate(shuffled):
            clip = driving[(index + turn) % len(driving)]
            held = frames_held[source]
            if held is None or held >= frames_needed[clip]:
                yield Candidate(action, source, clip)


@dataclass(slots=True)
class Planner:
    """Deals waves of candidates and remembers what became of them.

    Args:
        candidates: per action, the ordered list (`order_candidates`).
        quotas: what to keep.
    """

    candidates: Mapping[Action, Sequence[Candidate]]
    quotas: Quotas
    outcomes: dict[Candidate, Outcome] = field(default_factory=dict)

    def record(self, candidate: Candidate, outcome: Outcome) -> None:
        """Remember a verdict; each candidate has one."""
        self.outcomes[candidate] = outcome

    def next_wave(self, size: int = WAVE_SIZE) -> list[Candidate]:
        """The next candidates to try; empty when every quota is met or every list exhausted.

        Call only when every candidate of the wave before has its outcome.
        """
        kept = self.kept()
        filled = Counter(candidate.action for candidate in kept)
        claimed = Counter(candidate.source for candidate in kept)
        cursors = {action: iter(self.candidates[action]) for action in self._actions()}
        wave: list[Candidate] = []
        while cursors and len(wave) < size:
            for action in list(cursors):
                if len(wave) == size:
                    break
                candidate = self._next(
                    cursors[action],
                    is_wanted=lambda c: c not in self.outcomes,
                    action=action,
                    filled=filled,
                    claimed=claimed,
                )
                if candidate is None:
                    del cursors[action]
                    continue
                filled[action] += 1
                claimed[candidate.source] += 1
                wave.append(candidate)
        return wave

    def kept(self) -> list[Candidate]:
        """The fakes of the data set: per action, in list order, the first that passed and fit.

        Passed candidates beyond a quota (from a run with a larger one) are extra, not kept.
        """
        claimed: Counter[str] = Counter()
        kept: list[Candidate] = []
        cursors = {action: iter(self.candidates[action]) for action in self._actions()}
        filled: Counter[Action] = Counter()
        while cursors:
            for action in list(cursors):
                candidate = self._next(
                    cursors[action],
                    is_wanted=lambda c: self.outcomes.get(c) is Outcome.PASSED,
                    action=action,
                    filled=filled,
                    claimed=claimed,
                )
                if candidate is None:
                    del cursors[action]
                    continue
                filled[action] += 1
                claimed[candidate.source] += 1
                kept.append(candidate)
        return kept

    def shortfall(self) -> dict[Action, int]:
        """Fakes missing per action; only actions with a quota can be short."""
        filled = Counter(candidate.action for candidate in self.kept())
        wanted = self.quotas.per_action
        return {
            action: quota - filled[action]
            for action in self._actions()
            if (quota := wanted[action]) is not None and filled[action] < quota
        }

    def wanted(self) -> int:
        """Fakes to keep if every candidate passed: quotas, bounded by what the lists hold."""
        return sum(
            len(listed)
            if (quota := self.quotas.per_action[action]) is None
            else min(quota, len(listed))
            for action, listed in self.candidates.items()
        )

    def _actions(self) -> list[Action]:
        return [action for action in Action if action in self.candidates]

    def _next(
        self,
        cursor: Iterator[Candidate],
        *,
        is_wanted: Callable[[Candidate], bool],
        action: Action,
        filled: Counter[Action],
        claimed: Counter[str],
    ) -> Candidate | None:
        """The next wanted candidate that its quota and its source have room for."""
        if self._is_full(action, filled):
            return None
        return next((c for c in cursor if is_wanted(c) and self._has_room(c, claimed)), None)

    def _is_full(self, action: Action, filled: Counter[Action]) -> bool:
        quota = self.quotas.per_action[action]
        return quota is not None and filled[action] >= quota

    def _has_room(self, candidate: Candidate, claimed: Counter[str]) -> bool:
        bound = self.quotas.per_source
        return bound == 0 or claimed[candidate.source] < bound


def _rank(seed: int, action: Action, source: str) -> bytes:
    return hashlib.sha256(f"{seed}/{action}/{source}".encode()).digest()
