"""The main job on a real tree: index, save, restore into another folder, compare by independent means.

    python3 dev.py demo [TREE]

TREE is any folder; without it, Python's own library, which every machine has. Everything is written below
blobark-data/demo in this checkout and replaced by the next demo; TREE is only read. Exits 0 when the restored tree
is the same; run by somebody who is not root, when it is what such a user can restore.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from blobark.errors import EXIT_ITEMS_FAILED  # noqa: E402  (the checkout is put on the path first)
from blobark.trial import remove  # noqa: E402
from metrics.report import report  # noqa: E402
from tools.compare import differences  # noqa: E402


def main() -> int:
    """Run the demo; return the exit code."""
    if len(sys.argv) > 2:
        print("usage: python3 dev.py demo [TREE]", file=sys.stderr)
        return 2
    tree = Path(sys.argv[1] if len(sys.argv) == 2 else sysconfig.get_path("stdlib")).resolve()
    if not tree.is_dir():
        print(f"demo: {tree} is not a folder", file=sys.stderr)
        return 2
    folder = REPOSITORY / "blobark-data" / "demo"
    if not _made_anew(folder):
        return 1
    config = folder / "config.yaml"
    config.write_text(_config(tree))
    for script in ("build_index.py", "save_blob.py", "restore_blob.py"):
        print(f"\n$ {script} --config {config.relative_to(REPOSITORY)}", flush=True)
        command = [sys.executable, str(REPOSITORY / script), "--config", str(config)]
        code = subprocess.run(command, check=False).returncode
        if code:
            hint = ": take a tree that you may read and make all of" if code == EXIT_ITEMS_FAILED else ""
            print(f"demo: {script} ended with exit code {code}{hint}", file=sys.stderr)
            return code
    return _judge(tree, folder)


def _made_anew(folder: Path) -> bool:
    if folder.exists():
        print("demo: removing what the last one has left ...", flush=True)
        if problem := remove(folder):
            print(f"demo: {folder} cannot be removed ({problem})", file=sys.stderr)
            return False
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        print(f"demo: {folder} cannot be made ({error.strerror})", file=sys.stderr)
        return False
    return True


def _config(tree: Path) -> str:
    values = {
        "source_path": str(tree),
        "store": "store",
        "state_dir": "state",
        "guid_mapping_file": "guid_file_mapping.json",
        "restore_root": "restored",
        "metrics_log_file": "restore-metrics.json",
        "save_metrics_log_file": "save-metrics.json",
        # What other programs write into the tree while the demo reads it is not its business.
        "exclude": ["__pycache__/", "blobark-data/"],
    }
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()).replace("$", "$$")


def _judge(tree: Path, folder: Path) -> int:
    """Compare the trees with code that shares nothing with Blobark, and say where everything is."""
    user = (os.geteuid(), os.getegid()) if os.geteuid() else None
    lines = differences(str(tree), str(folder / "restored"), restored_by=user)
    found = [line for line in lines if not _excluded(line)]
    print(f"\ncompared with lstat, sha256, readlink and listxattr: {_differences(len(found))}")
    if user:
        print("  (all that is restored is yours: only root can give files to others, and set some of their attributes)")
    for line in found[:20]:
        print(f"  {line}")
    made = report([folder / "restore-metrics.json", folder / "save-metrics.json"])
    print(f"the map     {folder / 'guid_file_mapping.json'}")
    print(f"the store   {folder / 'store'}")
    print(f"restored    {folder / 'restored'}")
    print(f"metrics     {folder / 'restore-metrics.json'}")
    print(f"report      {made.html} (what held the restore up: {made.runs[0]['verdict']})")
    return 1 if found else 0


def _differences(count: int) -> str:
    return f"{count or 'no'} difference{'' if count == 1 else 's'}"


def _excluded(line: str) -> bool:
    """Whether a difference is about what the demo's configuration leaves out."""
    return "__pycache__" in line or "blobark-data" in line


if __name__ == "__main__":
    sys.exit(main())
