"""`python -m distilrank` is the `distilrank` command."""

from distilrank.cli import main

if __name__ == "__main__":
    main()
