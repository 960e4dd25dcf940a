"""`python -m samdiffsr` is `samdiffsr`."""

from samdiffsr.cli import main

if __name__ == "__main__":
    main()
