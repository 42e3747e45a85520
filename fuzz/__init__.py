"""Fuzzing: untrusted bytes into the real decoders. `make fuzz` runs it; tests/unit/test_fuzz_corpus.py runs the inputs
that were kept.

    targets.py          what each target decodes, and what must hold for any bytes
    worker_replies.py   the target with a conversation: a hostile worker against the broker's WorkerLink
    control.py          the target for the channels between our processes
    config_file.py      the target for config files
    reading.py, fds.py  helpers of the targets
    run.py, one.py      all targets and the table of results; one target under atheris (github.com/google/atheris)
    words.py            a dictionary of the words in the messages
    corpus/TARGET/      inputs that reach different code, kept in git; those with names were written by hand
    crashes/TARGET/     inputs that once broke something: each is now a test
"""
