#!/bin/sh
# What each part of DPT buys, on all 24 things of the demo: 40 runs of some minutes each, and a
# table. Stopped, the same command goes on where it was. Arguments before train.py are passed on:
#
#     sh tests/benchmarks/ablations.sh                                   # python
#     sh tests/benchmarks/ablations.sh torchrun --nproc_per_node=2       # runs dealt out to two
set -e
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- python
out=runs/ablations
[ -d runs/all24 ] || python tests/benchmarks/concentration.py --draw runs/all24

sweep() { # FOLDER OPTION...
    folder=$1
    shift
    $launch train.py --data runs/all24 --model tiny --epochs 60 --seed 1 2 3 \
        --no-report --out "$out/$folder" "$@"
}
launch=$*

sweep published --method zeroshot coop vpt vlp dpt
sweep top-k-1 --top-k 1
sweep top-k-3 --top-k 3
sweep top-k-24 --top-k 24
sweep class-aware-from-3 --class-aware-from 3
sweep no-guidance --guidance-epochs 0
sweep alpha-0 --alpha 0
sweep n-visual-1 --n-visual 1
sweep n-visual-5 --n-visual 5
sweep n-ctx-4 --n-ctx 4
python eval.py table "$out"
