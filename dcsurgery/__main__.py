"""`python -m dcsurgery` runs the command line."""

from dcsurgery.cli.main import main

if __name__ == "__main__":
    main()
