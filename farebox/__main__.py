"""`python -m farebox`: the same as the `farebox` program."""

from farebox.cli import main

main()
