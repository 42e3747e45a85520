import re
import tomllib
from pathlib import Path
from typing import get_args

import msgspec

from weave.config.schema import Config
from weave.protocol.client_messages import ClientMessage, Event, Generate, JobStatus, ModelOffer
from weave.protocol.errors import ErrorCode
from weave.protocol.features import FEATURES
from weave.supervisor.main import parser as daemon_parser
from weave.weavectl.options import parser as client_parser

ROOT = Path(__file__).parents[2]


def test_every_test_named_in_the_docs_exists() -> None:
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/security.md").read_text() + (ROOT / "README.md").read_text()))
    assert len(named) > 20
    assert {name for name in named if f"def {name}(" not in tests} == set()


def test_every_row_of_the_threat_table_names_a_test() -> None:
    lines = (ROOT / "docs/security.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and line != "| attack | layer | test |"]
    assert len(rows) > 20 and [row for row in rows if "`test_" not in row] == []


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
    inner = {"models": [ModelOffer], "status": [JobStatus]}
    for event in get_args(Event):
        tag = event.__struct_config__.tag
        for kind in (event, *inner.get(tag, [])):
            assert [field for field in kind.__struct_fields__ if f"`{field}`" not in events[tag]] == []
    generate = page.split("\n`generate`: ")[1].split("\n\n")[0]
    assert [field for field in Generate.__struct_fields__ if f"`{field}`" not in generate] == []
    errors = page.split("\n## Errors\n")[1].split("\n# ")[0]
    assert [code for code in ErrorCode if f"`{code}`" not in errors] == []


def test_protocol_md_has_every_feature_and_its_version() -> None:
    documented = rows((ROOT / "docs/protocol.md").read_text(), "Features")
    assert {name: row.rstrip(" |").rpartition("| ")[2] for name, row in documented.items()} == FEATURES


def test_every_file_named_in_the_map_of_the_tests_exists() -> None:
    page = (ROOT / "tests/README.md").read_text()
    python = set(re.findall(r"\b([a-z_]+\.py)\b", page))
    assert len(python) > 30
    assert python - {path.name for path in ROOT.glob("tests/**/*.py")} == set()
    folders = re.findall(r"^\| (\w+) \|", page.partition("| folder |")[2].partition("\n## ")[0], re.MULTILINE)
    assert len(folders) > 8 and [name for name in folders if not (ROOT / "tests" / name).is_dir()] == []
