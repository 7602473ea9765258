#!/bin/sh
# Formatting, clippy, docs and all tests.
#
#   sh tools/test.sh [--yes]    --yes: install what the system lacks (see tools/setup.sh)
#
# CROSSWEAVE_FIXTURES names a folder whose fixtures are checked besides tests/fixtures.
set -eu
cd "$(dirname "$0")/.."

case ${1:-} in
--yes) SETUP_YES=1 ;;
'') ;;
*) echo "test.sh: unknown option: $1 (only --yes)" >&2; exit 2 ;;
esac
# Read by setup.
# shellcheck disable=SC2034
SETUP_LINTS=1
. tools/setup.sh
setup || exit 1

count() { find "$1" -maxdepth 1 -type f ! -name README.md | wc -l | tr -d ' '; }

if [ -n "${CROSSWEAVE_FIXTURES:-}" ]; then
    # Tests run with the package's root as their folder; a relative path means the caller's.
    folder=$(cd "${OLDPWD:-.}" && cd "$CROSSWEAVE_FIXTURES" && pwd) || {
        echo "test.sh: CROSSWEAVE_FIXTURES is no folder: $CROSSWEAVE_FIXTURES" >&2
        exit 1
    }
    CROSSWEAVE_FIXTURES=$folder
    export CROSSWEAVE_FIXTURES
    set_name="tests/fixtures ($(count tests/fixtures) files) and $CROSSWEAVE_FIXTURES ($(count "$CROSSWEAVE_FIXTURES") files)"
else
    set_name="tests/fixtures ($(count tests/fixtures) files); CROSSWEAVE_FIXTURES is not set"
fi

run() {
    echo "== $*"
    "$@"
}

# What the tests measure on a GPU is not the user's.
CROSSWEAVE_CACHE=${CARGO_TARGET_DIR:-$PWD/target}/choices
export CROSSWEAVE_CACHE

run cargo fmt --check
run cargo clippy --locked --all-targets -- -D warnings
run env RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps
echo "== fixtures: $set_name"
run cargo test --locked
echo "== all passed, with fixtures: $set_name"
