"""Entry point: `python -m corsd_lib` runs the command `corsd`."""

from corsd_lib.cli import main

if __name__ == "__main__":
    main()
