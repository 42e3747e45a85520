"""What the SELinux policy never allows, checked in the whole policy as it would be loaded. Each check has a rule that
would break it: added to the module, it must be found. The policy is Debian's."""

from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.mac.selinux_policy import Policy, Rule, link, skip_unless_installed

SUPERVISOR, BROKER, WORKER = "weave_t", "weave_broker_t", "weave_worker_t"
CHILDREN = (BROKER, WORKER)
OURS = (SUPERVISOR, *CHILDREN)
# Of the module of a client (tests/mac/selinux_policy.py).
CLIENT, LIBRARIAN = "weave_client_t", "weave_librarian_t"
MEMFDS = ("weave_tmpfs_t", "weave_broker_tmpfs_t", "weave_worker_tmpfs_t")
GPU = ("dri_device_t", "xserver_misc_device_t")

FILES = ("file", "dir", "lnk_file", "sock_file", "fifo_file", "chr_file", "blk_file")
CHANGES = frozenset(
    ("add_name", "append", "create", "link", "relabelfrom", "relabelto", "remove_name")
    + ("rename", "reparent", "rmdir", "setattr", "unlink", "write")
)
# What Debian lets every domain write to: itself in /proc, the terminal that it has, which is none here, devices that
# hold nothing, and the daemon that translates labels.
EVERY_DOMAINS = {
    *((domain, "file") for domain in OURS),
    *((device, "chr_file") for device in ("devtty_t", "null_device_t", "zero_device_t")),
    ("setrans_runtime_t", "sock_file"),
}
# The log, and memfds: what a child is handed open for writing, and can neither make nor open.
HANDED_OVER = {(SUPERVISOR, "fifo_file"), *((memfd, "file") for memfd in MEMFDS)}

Findings = Iterator[str]


def found(rules: Iterable[Rule], permissions: Iterable[str] | None = None) -> Findings:
    """As they would be in the module, one permission each."""
    for rule in rules:
        for permission in sorted(rule.permissions if permissions is None else rule.permissions & set(permissions)):
            yield f"allow {rule.source} {rule.target}:{rule.tclass} {permission};"


def broker_uses_a_device(policy: Policy) -> Findings:
    harmless = {"devtty_t", "null_device_t", "random_device_t", "urandom_device_t", "zero_device_t"}
    devices = (rule for rule in policy.by(BROKER) if rule.tclass in ("chr_file", "blk_file"))
    return found(rule for rule in devices if rule.target not in harmless)


def any_has_a_socket_but_unix(policy: Policy) -> Findings:
    for rule in policy.by(*OURS):
        if rule.tclass.endswith("socket") and not rule.tclass.startswith("unix_"):
            # recvfrom is about labelled packets; without a socket it allows nothing.
            yield from found([rule], rule.permissions - {"recvfrom"})


def any_connects_or_sends_to(policy: Policy) -> Findings:
    fine = {"setrans_t"}
    for domain in OURS:
        for rule in policy.by(domain):
            notifies_systemd = domain == SUPERVISOR and rule.target == "init_t" and rule.tclass == "unix_dgram_socket"
            if rule.tclass.startswith("unix_") and rule.target not in fine and not notifies_systemd:
                yield from found([rule], ["connectto", "sendto"])


def any_executes(policy: Policy) -> Findings:
    return found(policy.by(*OURS), ["execute_no_trans"])


def any_enters_another_domain(policy: Policy) -> Findings:
    for domain in OURS:
        for rule in policy.by(domain):
            if not (domain == SUPERVISOR and rule.target in CHILDREN and "dyntransition" not in rule.permissions):
                yield from found([rule], ["transition", "dyntransition"])


def child_chooses_a_context(policy: Policy) -> Findings:
    chosen = ["setexec", "setcurrent", "setfscreate", "setkeycreate", "setsockcreate"]
    yield from found(policy.by(*CHILDREN), chosen)
    yield from found(policy.by(SUPERVISOR), chosen[1:])


def ours_is_entered_by(policy: Policy) -> Findings:
    for domain in OURS:
        starter = "init_t" if domain == SUPERVISOR else SUPERVISOR
        entering = (rule for rule in policy.about(domain) if rule.tclass == "process" and rule.source != starter)
        yield from found(entering, ["transition", "dyntransition"])


def any_traces(policy: Policy) -> Findings:
    return found(policy.by(*OURS), ["ptrace"])


def broker_signals(policy: Policy) -> Findings:
    return found(policy.by(BROKER), ["sigkill", "signal", "sigstop"])


def worker_signals_another(policy: Policy) -> Findings:
    return found((rule for rule in policy.by(WORKER) if rule.target != WORKER), ["sigkill", "signal", "sigstop"])


def any_has_a_capability(policy: Policy) -> Findings:
    for domain in OURS:
        kept = {"kill", "setgid", "setpcap", "setuid"} if domain == SUPERVISOR else set()
        for rule in policy.by(domain):
            if rule.tclass.startswith(("capability", "cap_", "cap2_")):
                yield from found([rule], rule.permissions - kept)


def any_makes_code_but_the_worker(policy: Policy) -> Findings:
    yield from found(policy.by(SUPERVISOR, BROKER), ["execmem"])
    yield from found(policy.by(*OURS), ["execheap", "execstack"])


def config_is_read_by(policy: Policy) -> Findings:
    yield from found((rule for rule in policy.about("weave_conf_t") if rule.source != SUPERVISOR), ["read"])
    yield from _through_an_attribute(policy, "weave_conf_t")


def models_are_read_by(policy: Policy) -> Findings:
    for rule in policy.about("weave_models_t"):
        makes_the_folder = rule.source == "systemd_tmpfiles_t" and rule.tclass == "dir"
        if rule.tclass in ("file", "dir") and rule.source not in (WORKER, LIBRARIAN) and not makes_the_folder:
            yield from found([rule], ["read"])
    yield from _through_an_attribute(policy, "weave_models_t")


def _through_an_attribute(policy: Policy, type_: str) -> Findings:
    attributes = policy.names(type_) - {type_}
    return found((rule for rule in policy.by(*OURS) if rule.target in attributes), ["open", "read"])


def config_or_models_are_changed(policy: Policy) -> Findings:
    yield from found(policy.about("weave_conf_t"), CHANGES)
    for rule in policy.about("weave_models_t"):
        makes_the_folder = rule.source == "systemd_tmpfiles_t" and rule.tclass == "dir"
        if rule.source != LIBRARIAN and not makes_the_folder:
            yield from found([rule], CHANGES)


def audit_is_changed_but_by_appending(policy: Policy) -> Findings:
    files = (rule for rule in policy.about("weave_log_t") if rule.tclass == "file")
    return found(files, CHANGES - {"append", "create"})


def broker_changes_a_file(policy: Policy) -> Findings:
    return found(_but(policy.by(BROKER), EVERY_DOMAINS | HANDED_OVER), CHANGES)


def worker_changes_a_file(policy: Policy) -> Findings:
    own = {*HANDED_OVER, (WORKER, "fifo_file"), *((device, "chr_file") for device in GPU)}
    return found(_but(policy.by(WORKER), EVERY_DOMAINS | own), CHANGES)


def supervisor_changes_a_file(policy: Policy) -> Findings:
    runtime = {("weave_runtime_t", tclass) for tclass in ("dir", "file", "sock_file")}
    audit = {("weave_log_t", tclass) for tclass in ("dir", "file")}
    # systemd's socket for notifications, and what it may hand to any service as standard streams.
    systemd = {("init_runtime_t", "sock_file"), ("init_t", "fifo_file"), ("init_tmpfs_t", "file")}
    metrics = {("weave_metrics_t", tclass) for tclass in ("dir", "file")}
    own = {(SUPERVISOR, "fifo_file"), ("weave_tmpfs_t", "file"), *runtime, *audit, *metrics, *systemd}
    return found(_but(policy.by(SUPERVISOR), EVERY_DOMAINS | own), CHANGES)


def memfd_is_opened(policy: Policy) -> Findings:
    for memfd in MEMFDS:
        yield from found(policy.about(memfd), ["append", "create", "execute", "open"])


def gpu_is_used_though_the_boolean_is_off(policy: Policy) -> Findings:
    used = (rule for rule in policy.by(*OURS) if rule.target in GPU and rule.condition != "weave_use_gpu:True")
    return found(used, ["ioctl", "map", "open", "read", "write"])


def gpu_is_used_by_another_than_the_worker(policy: Policy) -> Findings:
    used = (rule for rule in policy.by(SUPERVISOR, BROKER) if rule.target in GPU)
    return found(used, ["ioctl", "map", "open", "read", "write"])


def _but(rules: Iterable[Rule], fine: set[tuple[str, str]]) -> Iterator[Rule]:
    return (rule for rule in rules if rule.tclass in FILES and (rule.target, rule.tclass) not in fine)


Check = Callable[[Policy], Findings]
# With each the rule that it must find.
NEVER: dict[Check, str] = {
    broker_uses_a_device: "allow weave_broker_t fixed_disk_device_t:blk_file read;",
    any_has_a_socket_but_unix: "allow weave_worker_t weave_worker_t:tcp_socket create;",
    any_connects_or_sends_to: "allow weave_t init_t:unix_stream_socket connectto;",
    any_executes: "allow weave_broker_t bin_t:file execute_no_trans;",
    any_enters_another_domain: "allow weave_worker_t init_t:process dyntransition;",
    child_chooses_a_context: "allow weave_worker_t weave_worker_t:process setexec;",
    ours_is_entered_by: "allow syslogd_t weave_broker_t:process transition;",
    any_traces: "allow weave_t weave_worker_t:process ptrace;",
    broker_signals: "allow weave_broker_t weave_worker_t:process sigkill;",
    worker_signals_another: "allow weave_worker_t weave_t:process signal;",
    any_has_a_capability: "allow weave_t weave_t:capability dac_override;",
    any_makes_code_but_the_worker: "allow weave_broker_t weave_broker_t:process execmem;",
    config_is_read_by: "allow weave_worker_t weave_conf_t:file read;",
    models_are_read_by: "allow weave_t weave_models_t:file read;",
    config_or_models_are_changed: "allow weave_worker_t weave_models_t:dir add_name;",
    audit_is_changed_but_by_appending: "allow weave_t weave_log_t:file write;",
    broker_changes_a_file: "allow weave_broker_t weave_log_t:file append;",
    worker_changes_a_file: "allow weave_worker_t tmp_t:dir write;",
    supervisor_changes_a_file: "allow weave_t etc_t:file write;",
    memfd_is_opened: "allow weave_broker_t weave_worker_tmpfs_t:file open;",
    gpu_is_used_though_the_boolean_is_off: "allow weave_worker_t xserver_misc_device_t:chr_file write;",
    gpu_is_used_by_another_than_the_worker: "allow weave_broker_t dri_device_t:chr_file ioctl;",
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    skip_unless_installed()
    return link(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    skip_unless_installed()
    return link(tmp_path_factory.mktemp("harmed"), NEVER.values())


@pytest.mark.parametrize("check", NEVER, ids=lambda check: check.__name__)
def test_the_selinux_policy_has_no_rule_by_which(check: Check, policy: Policy) -> None:
    assert list(check(policy)) == []


@pytest.mark.parametrize(("check", "rule"), NEVER.items(), ids=[check.__name__ for check in NEVER])
def test_a_rule_would_be_found_by_which(check: Check, rule: str, harmed: Policy) -> None:
    assert rule in list(check(harmed))


def test_the_worker_uses_the_gpu_where_the_boolean_is_on(policy: Policy) -> None:
    conditional = [rule for rule in policy.by(WORKER) if rule.condition == "weave_use_gpu:True"]
    assert {rule.target for rule in conditional if rule.tclass == "chr_file"} == set(GPU)
    # What CUDA needs besides the devices (weave_compute.te).
    beside = {(rule.target, rule.tclass) for rule in conditional if rule.tclass != "chr_file"}
    own = {(WORKER, "unix_stream_socket"), (WORKER, "file"), ("weave_worker_tmpfs_t", "file")}
    assert own | {("sysctl_vm_t", "file")} <= beside
    assert {target for target, _ in beside} <= {WORKER, "weave_worker_tmpfs_t", "proc_t", "sysctl_t", "sysctl_vm_t"}


def test_the_supervisor_starts_its_children_under_no_new_privs(policy: Policy) -> None:
    started = {rule.target for rule in policy.by(SUPERVISOR) if "nnp_transition" in rule.permissions}
    assert started == {rule.target for rule in policy.by(SUPERVISOR) if "transition" in rule.permissions}
    assert started == set(CHILDREN)


def test_a_client_connects_and_receives_images_by_the_interfaces(policy: Policy) -> None:
    weave = {(*rule[:3], *sorted(rule.permissions)) for rule in policy.by(CLIENT) if rule.target.startswith("weave_")}
    assert weave - {rule for rule in weave if rule[1] == CLIENT} == {
        (CLIENT, SUPERVISOR, "unix_stream_socket", "connectto"),
        (CLIENT, "weave_runtime_t", "dir", "getattr", "open", "search"),
        (CLIENT, "weave_runtime_t", "sock_file", "append", "getattr", "open", "write"),
        (CLIENT, WORKER, "fd", "use"),
        (CLIENT, "weave_worker_tmpfs_t", "file", "getattr", "map", "read", "write"),
    }


@pytest.mark.parametrize(
    ("path", "kind", "label"),
    [
        ("/usr/bin/weave-compute", "file", "weave_exec_t"),
        ("/usr/bin/weavectl", "file", "bin_t"),
        ("/usr/lib/weave-compute/bin/python", "symlink", "bin_t"),
        ("/usr/lib/weave-compute/lib/python3.11/site-packages/weave/__init__.py", "file", "lib_t"),
        ("/etc/weave", "dir", "weave_conf_t"),
        ("/etc/weave/conf.d/site.toml", "file", "weave_conf_t"),
        ("/usr/share/weave-compute/models/shapes/model_index.json", "file", "weave_models_t"),
        ("/var/lib/weave/models/own/unet/model.safetensors", "file", "weave_models_t"),
        ("/run/weave", "dir", "weave_runtime_t"),
        ("/run/weave/weave.sock", "socket", "weave_runtime_t"),
        ("/var/log/weave/audit.log", "file", "weave_log_t"),
        ("/var/lib/weave/metrics/weave.prom", "file", "weave_metrics_t"),
        ("/dev/nvidia0", "char", "xserver_misc_device_t"),
        ("/dev/dri/renderD128", "char", "dri_device_t"),
        ("/dev/kfd", "char", "dri_device_t"),
    ],
)
def test_a_file_of_ours_is_labelled(path: str, kind: str, label: str, policy: Policy) -> None:
    assert policy.label(path, kind) == label
