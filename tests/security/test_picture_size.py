"""A worker never sends a picture of another size than was asked for."""

import pytest

from tests.support.builds import daemon_of
from tests.support.daemon import wait_for
from tests.support.pictures import draw, images, pixels
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.protocol.client_messages import Image
from weave.protocol.errors import ErrorCode

OTHER_SIZE = ("            width=parameters.width,\n", "            width=parameters.width * 2,\n")
UNCHECKED = ("    _check_size(image, parameters)\n", "")


def test_a_picture_of_another_size_is_never_sent() -> None:
    daemon = daemon_of({"gpu_worker/generation.py": [OTHER_SIZE]}, MODEL)
    try:
        with daemon.client() as client:
            got = []
            with pytest.raises(WeaveError) as failed:
                for answer in client.generate("a red circle", model="shapes", width=64, height=64, steps=2):
                    got.append(answer.event)
            assert failed.value.code is ErrorCode.INTERNAL
            assert got and not [event for event in got if isinstance(event, Image)]
        told = "the model generated 128x64, expected 64x64"
        wait_for(lambda: [line for line in daemon.events("job_failed") if told in line["detail"]])
    finally:
        daemon.stop()


def test_without_the_check_of_sizes_a_client_would_get_it() -> None:
    daemon = daemon_of({"gpu_worker/generation.py": [OTHER_SIZE, UNCHECKED]}, MODEL)
    try:
        with daemon.client() as client:
            assert pixels(images(draw(client, width=64, height=64, steps=2))[0]).shape == (64, 128, 3)
    finally:
        daemon.stop()
