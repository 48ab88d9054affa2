"""`python -m dfm_engine.cli`."""

from dfm_engine.cli import main

main()
