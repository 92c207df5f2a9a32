"""`python -m flows.cli`: the command `chiron`."""

from flows.start import main

if __name__ == "__main__":
    main()
