#!/bin/sh
# Builds Crossweave, trains a system on the bundled data, evaluates it and says where the results are.
#
#   sh tools/demo.sh [--yes] [--quick] [--system NAME] [--seed N] [OPTION ..]
#
#   --yes          install what the system lacks (see tools/setup.sh)
#   --quick        a run of under a minute: 40 seconds of training at most
#   --system NAME  dime (default), hrem, gsmn or hat
#   --seed N       another start (default 1)
#   --logger_name DIR  the run's folder (default runs/demo-NAME-N, or the first of runs/demo-NAME-N-2, -3, .. that is
#                  free)
#   OPTION         anything else goes to `crossweave train`, over the configuration in tools/demo-NAME.toml
set -eu
cd "$(dirname "$0")/.."

quick=
seed=1
system=dime
run=
left=$#
while [ "$left" -gt 0 ]; do
    option=$1
    shift
    left=$((left - 1))
    case $option in
    --yes) SETUP_YES=1 ;;
    --quick) quick=yes ;;
    --seed)
        [ "$left" -gt 0 ] || { echo "demo.sh: --seed needs a number" >&2; exit 2; }
        seed=$1
        shift
        left=$((left - 1))
        ;;
    --seed=*) seed=${option#--seed=} ;;
    --system)
        [ "$left" -gt 0 ] || { echo "demo.sh: --system needs a name" >&2; exit 2; }
        system=$1
        shift
        left=$((left - 1))
        ;;
    --system=*) system=${option#--system=} ;;
    --logger_name | --logger-name)
        [ "$left" -gt 0 ] || { echo "demo.sh: $option needs a folder" >&2; exit 2; }
        run=$1
        shift
        left=$((left - 1))
        ;;
    --logger_name=* | --logger-name=*) run=${option#*=} ;;
    -h | --help)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    # Moved behind the options not yet read, so that only what goes on is left at the end.
    *) set -- "$@" "$option" ;;
    esac
done

config=tools/demo-$system.toml
if [ ! -e "$config" ]; then
    echo "demo.sh: no demo of --system $system; there are:" tools/demo-*.toml >&2
    exit 2
fi

. tools/setup.sh
setup || exit 1
# Without a session Mesa's device-select layer only complains.
[ -n "${XDG_RUNTIME_DIR:-}" ] || export NODEVICE_SELECT=1

cargo build --release --locked --bin crossweave
program=${CARGO_TARGET_DIR:-target}/release/crossweave

if [ -z "$run" ]; then
    run=runs/demo-$system-$seed
    n=2
    while [ -e "$run" ]; do
        run=runs/demo-$system-$seed-$n
        n=$((n + 1))
    done
fi
[ -z "$quick" ] || set -- --num_epochs 2 --time-limit 40 "$@"
"$program" train --config "$config" --seed "$seed" --logger_name "$run" "$@"
"$program" evaluate "$run" --show 3
echo
echo "The run is in $run: weights, configuration, metrics, TensorBoard events, curves.svg"
