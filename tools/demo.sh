#!/bin/sh
# Builds Crossweave, trains DIME on the bundled data, evaluates it and says where the results are.
#
#   sh tools/demo.sh [--yes] [--quick] [--seed N] [OPTION ..]
#
#   --yes     install what the system lacks (see tools/setup.sh)
#   --quick   a run of under a minute
#   --seed N  another start (default 1)
#   OPTION    anything else goes to `crossweave train`, over the configuration in tools/demo.toml
set -eu
cd "$(dirname "$0")/.."

quick=
seed=1
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
    -h | --help)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    # Moved behind the options not yet read, so that only what goes on is left at the end.
    *) set -- "$@" "$option" ;;
    esac
done

. tools/setup.sh
setup || exit 1

cargo build --release --locked --bin crossweave
[ -z "$quick" ] || set -- --quick "$@"
exec "${CARGO_TARGET_DIR:-target}/release/crossweave" train --config tools/demo.toml --seed "$seed" "$@"
