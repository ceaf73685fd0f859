"""The commands, by subject: `gateway`, `accounts`, `keys`, `books`; `common` is what they share.

Rules: nothing heavy is imported at the top of these files, so that `farebox --help` and shell
completion are instant; what a person got wrong is a `Refused` with a sentence; standard output
carries the result and nothing else.
"""
