"""What the documentation states, compared with the code, the tests and itself."""

import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from weave.config.load import load
from weave.config.schema import Config
from weave.protocol import control_messages, worker_messages
from weave.protocol.client_messages import ClientMessage, DeviceStatus, Event, JobStatus, ModelOffer
from weave.protocol.embeddings import EmbeddingOffer
from weave.protocol.errors import ErrorCode
from weave.protocol.features import FEATURES
from weave.protocol.inputs import ControlOffer
from weave.protocol.loras import LoraOffer
from weave.supervisor.main import parser as daemon_parser
from weave.weavectl.options import parser as client_parser

ROOT = Path(__file__).parents[2]
_PATTERNS = ("*.md", "docs/*.md", "tests/*.md", "tests/golden/*.md", "clients/go/*.md", "apparmor/*.md", "selinux/*.md")
PAGES = sorted(path for pattern in _PATTERNS for path in ROOT.glob(pattern))
# Folders that name pages in comments and docstrings. fuzz/corpus has old configs.
SOURCES = ("weave", "tests", "clients", "conf", "apparmor", "selinux", "packaging", "scripts", "gpu_kit", "training")


def links(page: str) -> Iterator[tuple[str, str]]:
    """Text and target of each link and image outside code blocks."""
    prose = re.sub(r"(?m)^    .*$", "", page)
    yield from re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", prose)


def anchors(page: str) -> set[str]:
    """Of each heading, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?m)^    .*$", "", page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, target: str) -> bool:
    """A relative link to no file, to no heading of a page, or to no test of a test file."""
    name, _, fragment = target.partition("#")
    file = (page.parent / name).resolve() if name else page
    if not file.exists() or not file.is_relative_to(ROOT):
        return True
    if not fragment:
        return False
    if file.suffix == ".py":
        return re.search(rf"(?m)^(?:async )?def {re.escape(fragment)}\(", file.read_text()) is None
    return fragment not in anchors(file.read_text())


def test_every_link_has_a_target() -> None:
    found = [(page, target) for page in PAGES for _, target in links(page.read_text())]
    relative = [(page, target) for page, target in found if not target.startswith("https://")]
    assert len(relative) > 250
    assert [(str(page.relative_to(ROOT)), target) for page, target in relative if broken(page, target)] == []


@pytest.mark.parametrize(
    "target", ["none.md", "README.md#none", "tests/unit/test_docs.py#none", "../outside.md", "#none"]
)
def test_a_broken_link_is_found(target: str) -> None:
    assert broken(ROOT / "README.md", target)


def test_every_page_and_heading_named_in_comments_exists() -> None:
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [ROOT / "Makefile", ROOT / "pyproject.toml", *(page for page in PAGES if page.name != "CHANGELOG.md")]
    texts = [path.read_bytes().decode(errors="ignore") for path in files if "__pycache__" not in path.parts]
    texts = [re.sub(r"\s*\n[\s#/;]*", " ", text) for text in texts]  # a reference may be wrapped
    named = {found for text in texts for found in re.findall(r'\b(docs/[\w-]+\.\w+)(?:, "([^"]+)")?', text)}
    assert len(named) > 10
    missing = {name for name, _ in named if not (ROOT / name).exists()}
    assert missing == set()
    # A heading, or the bold start of an item.
    start = r"(?m)^(?:#+ |- \*\*)"
    headings = {(name, heading) for name, heading in named if heading}
    assert {h for h in headings if not re.search(start + re.escape(h[1]), (ROOT / h[0]).read_text())} == set()


def test_every_threat_links_to_a_test() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    tables = re.findall(
        r"(?m)^\| attack(?: or fault)? \| layer \| shown by \|\n\|---\|---\|---\|\n((?:\| .*\n)+)", text
    )
    rows = [row for table in tables for row in table.splitlines()]
    assert len(tables) == len(re.findall(r"\| shown by \|", text)) and len(rows) > 90
    shown = {row: [target for _, target in links(row.split(" | ")[-1])] for row in rows}
    assert [
        row for row, targets in shown.items() if not any(re.match(r"\.\./tests/.*test_\w+\.py", t) for t in targets)
    ] == []


def process_map(text: str) -> dict[str, list[tuple[str, str]]]:
    """By the name of a channel's union: message and handler of each row of its table."""
    tables = re.findall(r"(?m)^\*\*[^\n]*?\(`(\w+)`[^\n]*\n\n\| message .*\n\|[-|]+\n((?:\| .*\n)+)", text)
    return {union: re.findall(r"(?m)^\| `(\w+)`[^|]* \| ([^|]+) \|", rows) for union, rows in tables}


def test_the_process_map_has_every_message() -> None:
    channels = process_map((ROOT / "docs/architecture.md").read_text())
    unions = {"ToBroker", "FromBroker", "ToZygote", "FromZygote", "FromWorkerStart", "ToWorker", "FromWorker"}
    assert set(channels) == unions
    for name, messages in channels.items():
        union = "FromRecordedStart" if name == "FromWorkerStart" else name  # it has all of the other's
        module = control_messages if hasattr(control_messages, union) else worker_messages
        kinds = {kind.__name__ for kind in get_args(getattr(module, union))}
        assert {message for message, _ in messages} == kinds


def test_functions_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    handlers = [cell for messages in process_map(text).values() for _, cell in messages]
    named = [pair for cell in handlers for pair in re.findall(r"`([\w.]+)`(?: and `[\w.]+`)? in `([\w/]+\.py)`", cell)]
    assert len(named) >= len(handlers)
    assert [(function, file) for function, file in named if not defines([file], function)] == []
    steps = re.findall(r"(?m)^\| \d+ \| [^|]+ \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", text)
    assert len(steps) > 20
    assert [
        (function, files)
        for files, functions in steps
        for function in re.findall(r"`([\w.]+)`", functions)
        if not defines(re.findall(r"`([\w/]+\.py)`", files), function)
    ] == []
    locks = re.findall(r"(?m)^\| \w+ \| `([^`|]*lock_down\([^`|]*)` \| `([\w/]+\.py)` \|", text)
    assert len(locks) == 3
    assert [(line, file) for line, file in locks if line not in (ROOT / "weave" / file).read_text()] == []


def defines(files: list[str], function: str) -> bool:
    """Whether one of these files in weave/ has the function, and its class where it has one."""
    texts = [path.read_text() for file in files if (path := ROOT / "weave" / file).exists()]
    owner, _, name = function.rpartition(".")
    return any(f"def {name}(" in text and (not owner or f"class {owner}" in text) for text in texts)


def test_files_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", text))
    assert len(named) > 40
    assert {name for name in named if not (ROOT / "weave" / name).exists() and not (ROOT / name).exists()} == set()


def test_files_named_in_any_page_exist() -> None:
    text = "".join(page.read_text() for page in PAGES)
    file = r"(?<![\w/])((?:weave|tests|scripts|gpu_kit|conf|selinux|apparmor)/[\w/-]+\.(?:py|toml|te|go))\b"
    named = set(re.findall(file, text))
    assert len(named) > 20
    # CONTRIBUTING adds a family as an example.
    named -= {"weave/models/families/bria.py", "weave/gpu_worker/pipelines/bria.py"}
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_shipped_config_shows_the_defaults() -> None:
    shipped = tomllib.loads((ROOT / "conf/weave-compute.toml").read_text())
    assert msgspec.convert(shipped, Config) == Config(models={})
    assert set(shipped["limits"]) == set(type(Config(models={}).limits).__struct_fields__)


def test_the_man_pages_and_completions_know_every_option() -> None:
    for name, parser in (("weavectl", client_parser()), ("weave-compute", daemon_parser())):
        page = (ROOT / f"docs/man/{name}.1").read_text().replace("\\-", "-")
        completion = (ROOT / f"conf/completions/{name}.bash").read_text()
        options = set(re.findall(r"--[a-z-]+", parser.format_help())) - {"--help"}
        verbs = [a for a in parser._actions if a.dest == "verb"]
        for verb in verbs:
            assert isinstance(verb.choices, dict)
            for command, sub in verb.choices.items():
                assert command in page and command in completion
                options |= set(re.findall(r"--[a-z-]+", sub.format_help())) - {"--help"}
        assert {option for option in options if option not in page} == set()
        assert {option for option in options if option not in completion} == set()


def rows(page: str, section: str) -> dict[str, str]:
    """The rows of a section's first table: text by the name in the first cell."""
    text = page.split(f"\n## {section}\n")[1].partition("|---|")[2].split("\n\n")[0]
    return dict(re.findall(r"^\| `([^`]+)` \|(.*)$", text, re.MULTILINE))


def test_protocol_md_has_every_operation_event_field_and_error() -> None:
    page = (ROOT / "docs/protocol.md").read_text()
    operations, events = rows(page, "Operations"), rows(page, "Events")
    assert set(operations) == {op.__struct_config__.tag for op in get_args(ClientMessage)}
    assert set(events) == {event.__struct_config__.tag for event in get_args(Event)}
    inner = {"models": [ModelOffer, LoraOffer, EmbeddingOffer, ControlOffer], "status": [JobStatus, DeviceStatus]}
    for event in get_args(Event):
        tag = event.__struct_config__.tag
        for kind in (event, *inner.get(tag, [])):
            assert [field for field in kind.__struct_fields__ if f"`{field}`" not in events[tag]] == []
    errors = page.split("\n## Errors\n")[1].split("\n# ")[0]
    assert [code for code in ErrorCode if f"`{code}`" not in errors] == []


def test_protocol_md_has_every_feature_and_its_version() -> None:
    documented = rows((ROOT / "docs/protocol.md").read_text(), "Features")
    assert {name: row.rstrip(" |").rpartition("| ")[2] for name, row in documented.items()} == FEATURES


def test_every_file_named_in_the_map_of_the_tests_exists() -> None:
    page = (ROOT / "tests/README.md").read_text()
    python = set(re.findall(r"\b([a-z_]+\.py)\b(?!\")", page))  # quoted: one of weave/
    assert len(python) > 30
    assert python - {path.name for path in ROOT.glob("tests/**/*.py")} == set()
    folders = re.findall(r"^\| (\w+) \|", page.partition("| folder |")[2].partition("\n## ")[0], re.MULTILINE)
    assert len(folders) > 8 and [name for name in folders if not (ROOT / "tests" / name).is_dir()] == []


def test_the_models_in_the_operations_guide_can_be_configured(tmp_path: Path) -> None:
    section = (ROOT / "docs/operations.md").read_text().partition("### Add a model")[2].partition("\n### ")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n)+", section, re.MULTILINE)
    tables = "".join(textwrap.dedent(block) for block in blocks if "[models." in block)
    file = tmp_path / "config.toml"
    file.write_text(tables.replace('"..."', f'"{"0" * 64}"'))
    found = load(file).models
    assert {"sdxl-turbo", "sdxl-lightning", "lcm", "flux-schnell"} < found.keys()
    assert {"z-image", "flux2-klein", "krea2"} <= {model.family for model in found.values()}
