"""`python run.py COMMAND [--flags]`: the command `packlight` from a checkout, installed or not."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "src"))

from packlight.cli.main import main  # noqa: E402  needs the line before

if __name__ == "__main__":
    main()
