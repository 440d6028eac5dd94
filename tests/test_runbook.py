"""The runbook of docs/operations.md, followed word by word on a machine that has nothing but credentials.

The machine is an empty home and an empty environment; Blobark is cloned from what is in this folder now, and installs
its libraries itself. The steps are typed in their order; between them the container suffers what the next one is for.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from tests.azurite_server import AzuriteServer
from tests.runbook import Done, commands, follow, steps
from tests.runs import REPOSITORY, Workspace
from tests.trees import contents_of, make_tree, small_tree, write
from tools.compare import differences

NETWORK = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "PIP_CERT", "SSL_CERT_DIR", "SSL_CERT_FILE")
"""What a machine needs to reach the package index is its own, and not the runbook's."""

PRELUDE = "cd ~/recovery\n. ~/blobark/.venv/bin/activate\n"
"""What the runbook says for a new shell."""

SCRIPT = REPOSITORY / "blobark" / "container" / "rescue.py"


@dataclass
class Disaster:
    """A server that was backed up twice and is gone: its tree is at `lost` for comparison, and not where it was."""

    container: ContainerClient
    home: Path
    lost: Path
    data: Path
    inputs: dict[str, str]

    def follow(self, number: str) -> Done:
        """Follow a step; the first two and the one without Blobark begin in a shell that knows nothing yet."""
        return follow(("" if number in "128" else PRELUDE) + steps()[number], self.home, self.inputs)

    def blobs(self) -> dict[str, bytes]:
        """Return the MD5 of each blob that is made once."""
        blobs = [blob for blob in self.container.list_blobs() if not blob.name.endswith("/lock")]
        return {blob.name: bytes(blob.content_settings.content_md5 or b"") for blob in blobs}


@pytest.fixture
def disaster(tmp_path: Path, azurite: AzuriteServer, container: ContainerClient) -> Disaster:
    data = tmp_path / "srv" / "data"
    data.parent.mkdir()
    make_tree(data)
    small_tree(data / "many", *map(str, range(200)))  # so that there are some in a sample
    workspace = Workspace.on_azure(tmp_path / "server", data, azurite.connection_string, str(container.container_name))
    workspace.run("backup")
    write(data / "newer", "newer")
    workspace.run("backup")
    lost = data.rename(tmp_path / "lost")
    shutil.rmtree(tmp_path / "server")
    home = tmp_path / "home"
    home.mkdir()
    inputs = {
        "PATH": f"{Path(sys.executable).resolve().parent}:/usr/local/bin:/usr/bin:/bin",
        "BLOBARK": str(published(tmp_path / "blobark.git")),
        "AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string,
        "CONTAINER": str(container.container_name),
        "RESCUE_URL": f"{azurite.url}/{container.container_name}?{azurite.sas(str(container.container_name), 'rl')}",
        "SERVER": "web1",
        "DATA": str(data),
        **{name: os.environ[name] for name in NETWORK if name in os.environ},
    }
    return Disaster(container, home, lost, data, inputs)


def published(folder: Path) -> Path:
    """Make a git repository of what is in this folder now, committed or not."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, check=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "as it is"]):
        subprocess.run(["git", *who, *command], cwd=folder, capture_output=True, check=True)
    return folder


@pytest.mark.timeout(400)
def test_the_runbook_brings_a_machine_back(disaster: Disaster) -> None:
    stored = disaster.blobs()
    done = disaster.follow("1")
    assert done.failed == [], done.output
    done = disaster.follow("2")
    assert done.failed == [], done.output
    assert re.search(r"^ +restore +can work$", done.output, re.MULTILINE)
    assert hashlib.sha256(SCRIPT.read_bytes()).hexdigest() in done.output
    done = disaster.follow("3")
    assert done.failed == [], done.output
    assert str(disaster.data) in done.output
    done = disaster.follow("4")
    assert done.failed == [], done.output
    assert not disaster.data.exists()

    done = disaster.follow("5")
    assert done.failed == [], done.output
    assert differences(str(disaster.lost), str(disaster.data)) == []
    done = disaster.follow("6")
    assert done.failed == [], done.output
    assert " 0 failed" in done.output
    assert "digests were checked" in done.output
    write(disaster.data / "newer", "NEWER")
    done = disaster.follow("6")
    assert "failed: newer: " in done.output
    assert [code for code, _ in done.failed] == [3]

    done = disaster.follow("7")
    assert done.failed == [], done.output
    assert "snapshot" in done.output
    assert re.search(r"^ +sent +1 file", done.output, re.MULTILINE), done.output
    assert re.search(r"^web1 +3 ", done.output, re.MULTILINE), done.output
    assert stored.items() <= disaster.blobs().items()

    check_other_disasters(disaster)


def check_other_disasters(disaster: Disaster) -> None:
    """Go on from a machine that is back, with the tree that it had before it was changed at the end."""
    done = disaster.follow("8")
    assert done.failed == [], done.output
    assert "rescue.py: OK" in done.output
    tree = disaster.home / "by-script" / "tree"
    assert differences(str(disaster.data), str(tree)) == []

    disaster.container.upload_blob("blobark/web1/snapshots/0000000003", b"{", overwrite=True)
    disaster.container.upload_blob("blobark/web1/snapshots/0000000002", b"", overwrite=True)
    done = disaster.follow("9")
    assert done.failed == [(3, 'blobark snapshots --server "$SERVER"')], done.output
    earlier = contents_of(disaster.home / "earlier")
    assert "newer" not in earlier
    assert len(earlier) == len(contents_of(disaster.lost)) - 1

    for blob in disaster.container.list_blobs("blobark/web1/"):
        disaster.container.delete_blob(blob.name)
    done = disaster.follow("10")
    assert done.failed == [
        (3, 'blobark rebuild --server "$SERVER"'),
        (3, 'blobark restore --server "$SERVER" --to ~/rebuilt'),
    ], done.output
    rebuilt = contents_of(disaster.home / "rebuilt")
    linked = {"a-link-that-sorts-before", "hard/first", "hard/second", "symlink"}
    wanted = {name: data for name, data in contents_of(disaster.data).items() if name not in linked}
    assert wanted.items() <= rebuilt.items()


def test_the_runbook_has_every_step_and_says_what_must_be_known() -> None:
    found = steps()
    assert list(found) == ["", *map(str, range(1, 11))]
    assert all(found.values())
    named = re.findall(r"^export (\w+)='", found[""], re.MULTILINE)
    assert len(named) == len(found[""].splitlines())
    used = set(re.findall(r"\$\{?([A-Z]\w+)", "".join(list(found.values())[1:])))
    assert used <= set(named)


def test_the_runbook_names_the_script_that_is_in_the_container() -> None:
    digest = hashlib.sha256(SCRIPT.read_bytes()).hexdigest()
    step = steps()["8"]
    assert re.findall(r"rescue_([0-9a-f]{16})\.py", step) == [digest[:16]], f"in docs/operations.md say {digest}"
    assert re.findall(r"'([0-9a-f]{64})  rescue\.py'", step) == [digest], f"in docs/operations.md say {digest}"


def test_only_what_is_indented_is_typed() -> None:
    assert commands("words\n\n    a\n    b <<'END'\n      c\n    END\n\nwords `d`\n") == "a\nb <<'END'\n  c\nEND\n"
