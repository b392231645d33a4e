"""
Prints the versions and devices that a report of an error needs.

```bash
trl-unlearn env
```
"""

import argparse


def main() -> None:
    argparse.ArgumentParser(prog="trl-unlearn env", description=__doc__.strip().split("\n")[0]).parse_args()

    from trl.scripts.env import print_env

    from trl_unlearn import __version__

    print_env()
    print(f"- trl-unlearn version: {__version__}\n")


if __name__ == "__main__":
    main()
