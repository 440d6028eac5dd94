"""What trial restores leave behind, or have under way."""

from __future__ import annotations

import os
from pathlib import Path

from tests.runs import Workspace

# `os.walk` and not `rglob`, which fails on a folder that goes meanwhile.


def leftovers(workspace: Workspace) -> list[Path]:
    """Return the folders of trials in a workspace."""
    below = (Path(at, name) for at, folders, files in os.walk(workspace.folder) for name in folders + files)
    return [path for path in below if path.name.startswith("blobark-trial-")]


def is_restoring(workspace: Workspace) -> bool:
    """Whether a trial has brought a file there."""
    return any("tree" in Path(at).parts and names for top in leftovers(workspace) for at, _, names in os.walk(top))
