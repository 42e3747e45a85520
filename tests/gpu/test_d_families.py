"""d: every family with every scheduler in every dtype, compared with the plain diffusers call on the same device."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu import models
from tests.gpu.plain_calls import DTYPES, NEGATIVES, PROMPT, SCALE, SEED, STEPS, key
from tests.gpu.product import Product, config
from tests.gpu.report import ROOT
from tests.support.daemon import Daemon
from tests.support.generation import generate, images, pixels
from tests.support.reference import fitting

Pixels = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def plain(folder: Path, device: str) -> dict[str, Pixels]:
    output = folder / "plain.npz"
    command = [sys.executable, "-m", "tests.gpu.plain_calls", device, str(folder), str(output)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    with np.load(output) as generated:
        return dict(generated)


@pytest.fixture(scope="module", params=DTYPES)
def served(
    product: Product, device: str, folder: Path, plain: dict[str, Pixels], request: pytest.FixtureRequest
) -> Iterator[tuple[Daemon, str]]:
    tables = config(device, models.tables(folder), dtype=request.param)
    daemon = Daemon(tables, command=product.command).wait_until_serving()
    yield daemon, request.param
    daemon.stop()


@pytest.mark.seconds(10)
@pytest.mark.parametrize("family", models.FAMILIES)
def test_an_image_equals_the_plain_calls(
    served: tuple[Daemon, str], plain: dict[str, Pixels], family: str, figures: dict[str, Any]
) -> None:
    daemon, dtype = served
    wanted = {"model": family, "width": 64, "height": 64, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
    differences = {}
    with daemon.client() as client:
        for scheduler in fitting(family):
            for negative in NEGATIVES:
                more = {} if negative is None else {"negative_prompt": negative}
                (image,) = images(generate(client, PROMPT, scheduler=scheduler, **wanted, **more))
                expected = plain[key(dtype, family, scheduler, negative)]
                assert expected.std() > 0
                case = key(dtype, family, scheduler, negative)
                differences[case] = np.abs(pixels(image).astype(int) - expected)
    equal = sum(not difference.any() for difference in differences.values())
    figures["equal, byte by byte"] = f"{equal} of {len(differences)}"
    for case, difference in differences.items():
        if difference.any():
            figures[case] = f"differs by at most {difference.max()}, on average by {difference.mean():.4f}, of 255"
    assert max(difference.max() for difference in differences.values()) <= 2
