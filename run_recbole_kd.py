"""Train, distil and compare: ``python run_recbole_kd.py --model=RCEKD --student=BPR ...``."""

import sys

from recbole_kd.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
