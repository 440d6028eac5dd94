"""The configuration: where it comes from, its variables, and how its folders may lie to each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobark.config import SourceRoot, load
from blobark.errors import ConfigError
from tests.config_file import KEY, given_text, mistakes

pytestmark = pytest.mark.usefixtures("here")


# Where it comes from


def test_the_current_folder_goes_first_then_the_scripts_folder(here: Path, tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    with pytest.raises(ConfigError, match=r"^config.yaml: there is none in this folder or in .*scripts: name one"):
        load(None, environ={}, default_dir=scripts)
    (scripts / "config.yaml").write_text("server: theirs\nstate_dir: s")
    config = load(None, environ={}, default_dir=scripts)
    assert (config.server, config.state_dir) == ("theirs", scripts / "s")
    assert given_text("server: ours").server == "ours"
    assert load(scripts / "config.yaml", environ={}).server == "theirs"


def test_relative_paths_start_from_the_file_and_from_the_command_lines_folder(here: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/b.yaml").write_text("source_path: a\nrestore_root: r\nstore: ../s")
    config = load(Path("../etc/b.yaml"), environ={}, overrides={"restore_root": Path("r"), "source_path": None})
    etc = tmp_path.resolve() / "etc"
    assert config.source_path[0].path == etc / "a"
    assert config.store == etc.parent / "s"
    assert config.restore_root == here / "r"


def test_the_command_line_wins() -> None:
    text = "max_workers: 3\nserver: a\nsource_path: /a\none_file_system: true\n"
    config = given_text(text, max_workers=9, server=None, source_path=["/b", "/c"], one_file_system=False)
    assert (config.max_workers, config.server, config.one_file_system) == (9, "a", False)
    assert [root.name for root in config.source_path] == [b"/b", b"/c"]
    assert given_text(text, source_path="/${X}").source_path[0].name == b"/${X}"


def test_a_mistake_of_the_command_line_names_the_option() -> None:
    expected = ["--max-workers: expected a whole number from 1 to 512 or auto, got '0'"]
    assert mistakes("server: a", max_workers=0) == expected
    with pytest.raises(TypeError):
        given_text("server: a", workers=3)


# Variables


def test_variables() -> None:
    environ = {"A": "x", "EMPTY": "", "N": "8"}
    config = given_text(
        """
skip_files: ["${A}", "-${A}${A}-", "${MISSING:-d e}", "${EMPTY:-d}", "${MISSING:-}x", "$${A}", "a$b$", $A, "$$$$"]
max_workers: ${N:-3}
max_memory: ${M:-64}MiB
server: ${EMPTY}
source_path: {path: "/${A}", as: "/${B:-b}"}
""",
        environ,
    )
    assert config.skip_files == ("x", "-xx-", "d e", "d", "x", "${A}", "a$b$", "$A", "$$")
    assert (config.max_workers, config.max_memory_bytes, config.server) == (8, 64 << 20, None)
    assert config.source_path == (SourceRoot(Path("/x"), b"/b"),)


@given(value=st.text(st.characters(exclude_characters="\0/"), min_size=1))
@settings(max_examples=50, deadline=None)
def test_no_value_of_a_variable_is_taken_for_yaml(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    file = tmp_path_factory.getbasetemp() / "variable.yaml"
    file.write_text("skip_files: ['${V}', \"${V}\"]\nexclude: x\n")
    assert load(file, environ={"V": value}).skip_files == (value, value)


def test_variables_that_are_wrong() -> None:
    assert mistakes('server: "${A}"\nstore: ${B}/${C}\nstate_dir: ${1x}\nskip_files: [a, "${", "${D}"]\nserver: x') == [
        "config.yaml:1: server: the environment variable A is not set",
        "config.yaml:2: store: the environment variable B is not set",
        "config.yaml:2: store: the environment variable C is not set",
        "config.yaml:3: state_dir: expected ${NAME} or ${NAME:-default} ($$ is a plain $)",
        "config.yaml:4: skip_files: expected ${NAME} or ${NAME:-default} ($$ is a plain $)",
        "config.yaml:4: skip_files: the environment variable D is not set",
        "config.yaml:5: server: given twice, first in line 1",
    ]


# How the folders lie to each other


def test_a_restore_root_may_be_a_source_path_or_above_it_or_skipped() -> None:
    for restore_root in ("/a/b", "/a", "/", "/a/bc", "/elsewhere"):
        given_text(f"source_path: /a/b\nstore: /s\nstate_dir: /t\nrestore_root: {restore_root}")
    for skip_path in ("/a/restored", "restored", "/a/r*/", "[x, ./restored]"):
        given_text(f"source_path: /a\nrestore_root: /a/restored/now\nskip_path: {skip_path}")
    for skip_path in ("/a/restore", "now", "/a/restored/now/x"):
        assert len(mistakes(f"source_path: /a\nrestore_root: /a/restored/now\nskip_path: {skip_path}")) == 1


def test_a_restore_root_of_the_command_line_may_be_anywhere_but_in_the_store() -> None:
    text = "source_path: /a\nstore: /s"
    assert given_text(text, restore_root="/a/b").restore_root == Path("/a/b")
    assert mistakes(text, restore_root="/s/b") == ["--to: lies inside store (/s)"]


def test_links_do_not_hide_that_folders_overlap(here: Path) -> None:
    (here / "a/b").mkdir(parents=True)
    (here / "link").symlink_to("a/b")
    assert mistakes("source_path: [a, link]") == [f"config.yaml:1: source_path: {here}/link lies inside {here}/a"]
    assert mistakes("source_path: a\nrestore_root: link")[0].startswith("config.yaml:2: restore_root: lies inside")


def test_own_paths(here: Path) -> None:
    config = given_text("source_path: [., {path: /mnt/snap, as: /data}]\nstate_dir: /data/state\nstore: /mnt/snap/s/t")
    here_root, data_root = config.source_path
    assert config.own_paths_below(here_root) == {
        b"guid_file_mapping.json",
        b"blobark-data/restore-metrics.json",
        b"blobark-data/save-metrics.json",
    }
    assert config.own_paths_below(data_root) == {b"state", b"s/t"}
    azure = given_text(f"source_path: /\nstore: azure\ncontainer_name: abc\nconnection_string: {KEY}\nstate_dir: /x/y")
    relative = str(here).encode()[1:]
    assert azure.own_paths_below(azure.source_path[0]) == {
        b"x/y",
        relative + b"/guid_file_mapping.json",
        relative + b"/blobark-data/restore-metrics.json",
        relative + b"/blobark-data/save-metrics.json",
    }
