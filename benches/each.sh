#!/usr/bin/env bash
# What `tidegate each` costs beside `xargs`, for so many runs of a program that does nothing: paired runs, wall and CPU
# time of each, and the ratios' medians.
#
#   benches/each.sh [RUNS] [ROUNDS]      20000 and 3 unless told otherwise
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
runs=${1:-20000} rounds=${2:-3}

cargo build --quiet --release --features cli
program=${CARGO_TARGET_DIR:-target}/release/tidegate

# Prints wall and CPU seconds of a command that reads the numbers up to $runs.
seconds() {
    local TIMEFORMAT='%R %U %S'
    { time seq "$runs" | "$@" >/dev/null 2>&1; } 2>&1 | awk '{ print $1, $2 + $3 }'
}

for _ in $(seq "$rounds"); do
    read -r xargs_wall xargs_cpu < <(seconds xargs -P20 -n1 /bin/true)
    read -r each_wall each_cpu < <(seconds "$program" each -q -j 20 -- /bin/true)
    echo "$xargs_wall $xargs_cpu $each_wall $each_cpu"
done | awk '
    function middle(values, count,    i, j, swap) {
        for (i = 1; i <= count; i++) for (j = i + 1; j <= count; j++)
            if (values[j] < values[i]) { swap = values[i]; values[i] = values[j]; values[j] = swap }
        return values[int((count + 1) / 2)]
    }
    {
        printf "xargs %.2f s wall, %.2f s CPU; each %.2f s wall, %.2f s CPU\n", $1, $2, $3, $4
        wall[NR] = $3 / $1; cpu[NR] = $4 / $2
    }
    END { printf "each costs %.2f times the wall time and %.2f times the CPU time of xargs\n", middle(wall, NR), middle(cpu, NR) }'
