"""The clients' side: connections, the requests that come in on them, and the answers that go out. Knows schedule and
admission."""
