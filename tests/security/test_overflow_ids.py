"""The kernel shows one UID and one GID, usually 65534, for all that a user namespace does not map (user_namespaces(7)).
They identify no user, so the daemon refuses them."""

import grp
import pwd
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import COMMAND
from weave.config.schema import ConfigError, SystemConfig
from weave.sandbox.account import unmapped_gid, unmapped_uid
from weave.supervisor import accounts


@pytest.mark.parametrize("field", ["allowed_users", "broker_user", "worker_user"])
def test_a_user_with_the_overflow_uid_is_refused_by_field_name(field: str) -> None:
    name = pwd.getpwuid(unmapped_uid()).pw_name
    ask = {"broker_user": accounts.broker_account, "worker_user": lambda system: accounts.worker_account(system, ())}
    system = SystemConfig(allowed_groups=(), **{field: (name,) if field == "allowed_users" else name})
    with pytest.raises(
        ConfigError, match=rf"system\.{field}: '{name}' is UID \d+, which the kernel shows for every ID"
    ):
        ask.get(field, accounts.system_access)(system)


@pytest.mark.parametrize("field", ["allowed_groups", "socket_group"])
def test_a_group_with_the_overflow_gid_is_refused_by_field_name(field: str) -> None:
    name = grp.getgrgid(unmapped_gid()).gr_name
    system = SystemConfig(**{field: (name,) if field == "allowed_groups" else name})
    ask = accounts.system_access if field == "allowed_groups" else accounts.socket_group
    with pytest.raises(
        ConfigError, match=rf"system\.{field}: '{name}' is GID \d+, which the kernel shows for every ID"
    ):
        ask(system)


def test_a_daemon_running_as_the_overflow_uid_is_refused() -> None:
    """In a user namespace without a mapping every UID is 65534, and so is each peer's."""
    unmapped = ("unshare", "--user")
    if subprocess.run([*unmapped, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace may be made here")
    told = Path("/proc/sys/kernel/overflowuid").read_text().strip()
    refused = subprocess.run(
        [*unmapped, COMMAND, "--check-config"], capture_output=True, text=True, check=False, timeout=60
    )
    assert refused.returncode == 78
    assert refused.stderr.startswith(f"weave-compute: our UID is {told}, which the kernel shows for every ID")
    mapped = subprocess.run([*unmapped, "--map-root-user", COMMAND, "--check-config"], capture_output=True, check=False)
    assert mapped.returncode == 0, mapped.stderr
