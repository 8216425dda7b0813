"""`python -m upslope` is the command `upslope`."""

from upslope.cli import main

if __name__ == "__main__":
    main()
