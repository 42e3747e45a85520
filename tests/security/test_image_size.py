"""A worker never sends an image of another size than requested."""

import pytest

from tests.support.builds import daemon_of
from tests.support.daemon import wait_for
from tests.support.generation import generate, images, pixels
from tests.support.seams import after, without
from weave.client import WeaveError
from weave.protocol.client_messages import Image
from weave.protocol.errors import ErrorCode

OTHER_SIZE = after("gpu_worker/decode.py", "decode", "result = result.resize((128, 64))")
UNCHECKED = without("gpu_worker/generation.py", "_check_size")


def test_an_image_of_another_size_is_never_sent() -> None:
    daemon = daemon_of((OTHER_SIZE,))
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


def test_without_the_size_check_a_client_gets_the_image() -> None:
    daemon = daemon_of((OTHER_SIZE, UNCHECKED))
    try:
        with daemon.client() as client:
            assert pixels(images(generate(client, width=64, height=64, steps=2))[0]).shape == (64, 128, 3)
    finally:
        daemon.stop()
