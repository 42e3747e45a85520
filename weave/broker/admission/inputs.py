"""The images of one request, as the broker holds them."""

from weave.broker.admission.limits import Admission, Incoming
from weave.broker.admission.principal import Principal
from weave.protocol.channel import close_all
from weave.protocol.inputs import InputImage


class Inputs:
    """Sealed memfds. They count for their principal from before the first byte arrives until close()."""

    def __init__(self, admission: Admission, principal: Principal, images: tuple[InputImage, ...]) -> None:
        """Raises RequestError (queue_full, out_of_bounds) if there is no room for them."""
        self.memfds: tuple[int, ...] = ()
        self._admission = admission
        self._principal = principal
        self._counted = Incoming(bytes=sum(image.size for image in images), images=len(images))
        admission.reserve(principal, self._counted)

    def add(self, memfd: int) -> None:
        """Takes ownership of `memfd`."""
        self.memfds = (*self.memfds, memfd)

    def close(self) -> None:
        """Close the memfds; nothing counts any more."""
        memfds, self.memfds = self.memfds, ()
        close_all(list(memfds))
        self._admission.release(self._principal, self._counted)
        self._counted = Incoming()
