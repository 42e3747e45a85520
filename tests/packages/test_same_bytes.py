"""Two builds of one commit, in two folders, are the same bytes."""

import hashlib
from pathlib import Path

from tests.packages.conftest import build, clone


def test_two_builds_of_one_commit_are_the_same_bytes(tmp_path: Path) -> None:
    packages = ("weave-compute", "weave-compute-model-shapes")
    folders = [build(clone(tmp_path / name), *packages) for name in ("here", "in-another-place")]
    digests = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in f.iterdir() if file.is_file()}
        for f in folders
    ]
    assert len(digests[0]) == 4 and digests[0] == digests[1]
