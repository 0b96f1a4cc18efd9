"""The benchmarks of planning and observing, one after the other, and one table of all of them.

    python benchmarks/plan_all.py                    ten minutes on two cores, 5 GB of memory
    python benchmarks/plan_all.py --small            a quick check, without targets
    python benchmarks/plan_all.py --out FILE.jsonl   and append the numbers, one JSON object a line

Each runs in a process of its own. Exit code 1 if a target is missed.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measured import arguments, show

SCRIPTS = ('plan_search.py', 'plan_scores.py', 'uncurl_layer.py', 'observe_pass.py')


def main() -> None:
    """Run the scripts, collect their records and print them."""
    args = arguments(__doc__).parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for script in SCRIPTS:
            print(f'{script} ...', file=sys.stderr, flush=True)
            written = Path(folder) / f'{script}.jsonl'
            command = [sys.executable, Path(__file__).parent / script, '--out', written]
            subprocess.run(command + ['--small'] * args.small, check=True,
                           stdout=subprocess.DEVNULL)
            lines += written.read_text().splitlines()
    if args.out is not None:
        with args.out.open('a') as file:
            file.writelines(line + '\n' for line in lines)
    records = [json.loads(line) for line in lines]
    show(records)
    sys.exit(any(one['met'] is False for one in records))


if __name__ == '__main__':
    main()
