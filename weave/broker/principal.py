"""Whom limits and turns count. A UID is not a person: with user namespaces and /etc/subuid one user has thousands of
UIDs, all of which keep the groups that SO_PEERGROUPS shows."""

from msgspec import Struct

from weave.config.parts import Access


class Principal(Struct, frozen=True):
    """A known UID, or (None) all unknown ones together. Every limit and every turn counts by principal. Who may see
    or cancel a job is decided by UID alone, never by principal."""

    uid: int | None


# Peers that are admitted only by the group the kernel shows for them. They share what one known user gets.
UNKNOWN = Principal(None)


def principal_of(access: Access, uid: int) -> Principal:
    """For a peer that is allowed."""
    return Principal(uid) if uid in access.known else UNKNOWN
