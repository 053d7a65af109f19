"""`python -m lipscope` is the command line."""

from .cli import main

main()
