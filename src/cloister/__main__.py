"""`python -m cloister`: the command, where its script is not on the PATH."""

from cloister.cli.start import main

main()
