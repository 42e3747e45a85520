import re
import tomllib
from pathlib import Path

import msgspec

from weave.config.schema import Config
from weave.supervisor.main import parser as daemon_parser
from weave.weavectl.options import parser as client_parser

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_documents_name_exists() -> None:
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/security.md").read_text() + (ROOT / "README.md").read_text()))
    assert len(named) > 20
    assert {name for name in named if f"def {name}(" not in tests} == set()


def test_every_row_of_the_threat_table_names_a_test() -> None:
    lines = (ROOT / "docs/security.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and line != "| attack | layer | test |"]
    assert len(rows) > 20 and [row for row in rows if "`test_" not in row] == []


def test_the_shipped_config_says_what_the_defaults_are() -> None:
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
