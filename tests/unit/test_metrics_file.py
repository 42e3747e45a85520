"""The metrics file is written without following a link or blocking, and only to a folder that others cannot change."""

import os
from pathlib import Path

import pytest

from weave.config.ownership import open_own_folder
from weave.config.schema import ConfigError
from weave.protocol.control_messages import Alive
from weave.protocol.metrics import Metrics
from weave.supervisor.metrics_file import write_metrics

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


ALIVE = Alive(metrics=Metrics(), connections=1, queue_length=2, devices_failed=3)


def test_the_metrics_file_is_recreated_and_no_link_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    victim.chmod(0o600)
    (tmp_path / "weave.prom").symlink_to(victim)
    (tmp_path / ".weave.prom.part").symlink_to(victim)
    write_metrics(tmp_path / "weave.prom", ALIVE)
    assert victim.read_text() == "theirs" and victim.stat().st_mode & 0o777 == 0o600
    text = (tmp_path / "weave.prom").read_text()
    assert "weave_queue_length 2\n" in text and "weave_devices_failed 3\n" in text
    assert not (tmp_path / "weave.prom").is_symlink()


def test_the_metrics_file_does_not_block_on_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".weave.prom.part")
    write_metrics(tmp_path / "weave.prom", ALIVE)
    assert (tmp_path / "weave.prom").is_file()


def test_the_metrics_file_has_only_errors_that_occurred(tmp_path: Path) -> None:
    """A compromised broker may count others: each would become a separate time series."""
    counted = Metrics(errors={"queue_full": 3, "of_no_daemon": 1})
    write_metrics(tmp_path / "weave.prom", Alive(metrics=counted, connections=1, queue_length=2))
    lines = (tmp_path / "weave.prom").read_text().splitlines()
    assert [line for line in lines if "errors" in line and "code" in line] == [
        'weave_errors_total{code="queue_full"} 3'
    ]


@root_only
def test_no_file_is_written_to_another_users_folder(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 4001, 4001)
    with pytest.raises(ConfigError, match=f"belongs to UID 4001; fix it with: chown 0 {folder}"):
        write_metrics(folder / "weave.prom", ALIVE)
    assert list(folder.iterdir()) == []


@root_only
def test_a_group_may_write_only_roots_direct_parent_folder(tmp_path: Path) -> None:
    """Like /var/log on Ubuntu, which belongs to the group syslog."""
    folder = tmp_path / "log" / "weave" / "deeper"
    folder.mkdir(parents=True)
    (tmp_path / "log").chmod(0o775)
    os.close(open_own_folder(folder.parent))
    with pytest.raises(ConfigError, match="log: mode 0775 lets others write"):
        open_own_folder(folder)
    (tmp_path / "log").chmod(0o777)
    with pytest.raises(ConfigError, match="log: mode 0777 lets others write"):
        open_own_folder(folder.parent)
    (tmp_path / "log").chmod(0o775)
    os.chown(tmp_path / "log", 4001, -1)
    with pytest.raises(ConfigError, match="log: belongs to UID 4001"):
        open_own_folder(folder.parent)


def test_a_folder_others_can_write_a_link_and_root_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.close(open_own_folder(folder))
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="lets others write"):
        open_own_folder(folder)
    folder.chmod(0o1777)
    with pytest.raises(ConfigError, match="lets others create files in it"):
        open_own_folder(folder)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError):
        open_own_folder(tmp_path / "link")
    with pytest.raises(ConfigError, match="the root folder is not allowed"):
        open_own_folder(Path("/"))
