"""Fuzzing: bytes from an untrusted side into the real decoders. `make fuzz` runs it; tests/unit/test_fuzz_corpus.py
runs what it has found before.

    targets.py          what is decoded, and what must hold whatever the bytes are
    worker_replies.py   the target with a conversation: a hostile worker against the broker's link
    reading.py, fds.py  what the targets are made of
    run.py, one.py      the time budget and the table; one target under atheris (github.com/google/atheris)
    words.py            the words of the messages, for the fuzzer to try
    corpus/TARGET/      inputs that reach different code, kept in git; those with names were written by hand
    crashes/TARGET/     inputs that broke something once: each is a test from then on
"""
