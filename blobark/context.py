"""What every run is given: its configuration, the engine, the way to the store, and somebody to report to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from blobark.config import Config, SourceRoot
from blobark.crew import Crew
from blobark.engine import Engine
from blobark.errors import Interrupted
from blobark.itemlog import ItemLog
from blobark.model import Outcome, Root, text_or_b64
from blobark.rules import Rules
from blobark.scout import Scout
from blobark.source import SourceTree
from blobark.steps import Step
from blobark.stores.base import Store
from blobark.walk import Walk, WalkRoot, walk


class Reporter(Protocol):
    """Where a run says how it goes. Only `cli` decides what a person sees of it."""

    verbose: bool
    """Whether `detail` is shown."""

    def begin(self, what: str, items: int, size_bytes: int) -> None:
        """Say that a stage begins, with what it will handle (0: not known)."""

    def watch(self, recent: Callable[[], Sequence[Mapping[str, Any]]] | None) -> None:
        """Say where the samples of the last seconds are, while there are any (docs/metrics.md has their fields)."""

    def advance(self, items: int, size_bytes: int) -> None:
        """Say that items were handled."""

    def outcome(self, outcome: Outcome, path: bytes) -> None:
        """Say how one item ended: counts it, names it when it failed."""

    def detail(self, text: str) -> None:
        """Say something that only `-v` shows."""

    def tell(self, text: str) -> None:
        """Say something that only `-q` hides."""

    def warn(self, text: str) -> None:
        """Say something a person must see."""


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of one run."""

    config: Config
    rules: Rules
    engine: Engine
    crew: Crew
    """Does the work in place of the engine when it has members."""
    scout: Scout
    """Walks the roots, by their numbers among `sources`."""
    reporter: Reporter
    open_store: Callable[[bool], Store]
    """Opens the store (and makes it, when true and it can be made), once for the run."""
    store_counters: Callable[[], dict[str, int]]
    """What this process has repeated, and how often it was slowed down."""
    counters: Callable[[], dict[str, float]]
    """The run's own numbers of this moment, for the metrics."""
    items: ItemLog = field(default_factory=ItemLog)
    """The journal; `journals.journaled` gives the run one that is written."""
    steps: list[Step] = field(default_factory=list)
    """The commands that this one has in it, as far as it has come."""
    skip_damaged: bool = False
    """Whether a run goes on from an earlier snapshot when the newest one is damaged."""

    @property
    def workers(self) -> int:
        """How many transfers at a time there are now, in all processes together."""
        return int(self.counters()["workers"])

    def check_stop(self) -> None:
        """Raise `Interrupted` when the run was asked to stop; for loops that the engine does not see."""
        if self.engine.stop.is_set():
            raise Interrupted()

    def sources(self) -> list[SourceRoot]:
        """Return the configured roots in the order of a manifest: by their real names."""
        return sources_of(self.config)

    def roots(self) -> list[Root]:
        """Return the names of the configured roots, in the order of a manifest."""
        return [Root(*text_or_b64(source.name)) for source in self.sources()]

    def tree(self, root_name: bytes) -> SourceTree | None:
        """Open the configured root of that name; None when there is none. Raises `RootRefused`."""
        found = next((source for source in self.config.source_path if source.name == root_name), None)
        return SourceTree(found.path) if found else None


def sources_of(config: Config) -> list[SourceRoot]:
    """Return the configured roots in the order of a manifest: by their real names."""
    return sorted(config.source_path, key=lambda source: source.name)


def walk_of(config: Config, rules: Rules, number: int, since_ns: int) -> Walk:
    """Begin the walk of the root with this number, as `walk.walk`."""
    source = sources_of(config)[number]
    root = WalkRoot(source.path, source.name, config.own_paths_below(source))
    return walk(root, rules, one_file_system=config.one_file_system, since_ns=since_ns)


def full_path(root_name: bytes, path: bytes) -> bytes:
    """Return the absolute real path of an item."""
    if not path:
        return root_name
    return root_name + path if root_name == b"/" else root_name + b"/" + path
