"""`python -m corsd_lib` is `corsd`."""

from corsd_lib.cli import main

if __name__ == "__main__":
    main()
