"""The table of methods on networks whose circuit is known (as `patchclamp bench circuits`), with means and margins.

python bench/circuits.py [--json FILE]
"""

import argparse
import json
from pathlib import Path

import torch

from patchclamp.circuits.bench import means, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = run()
    methods, programs = (list(dict.fromkeys(row[key] for row in rows)) for key in ("method", "program"))
    value = {(row["program"], row["method"]): row["auroc"] for row in rows}
    print(f"| program | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
    for program in programs:
        print(f"| {program} | {' | '.join(f'{value[program, method]:.2f}' for method in methods)} |")
    print(f"| mean | {' | '.join(f'{mean:.3f}' for mean in means(rows).values())} |")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
