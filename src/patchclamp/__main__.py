"""`python -m patchclamp`, the same as the command `patchclamp`."""

from patchclamp.cli import main

main()
