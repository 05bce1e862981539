"""`python -m preflab` is `preflab`."""

from preflab.cli.main import main

main()
