# What Crossweave needs from the system: a Rust toolchain, a C linker and, on Linux, a Vulkan driver.
#
#   sh tools/setup.sh [--yes]    check, and install what is missing
#
# As root, or with --yes (through sudo), it installs with apt-get; otherwise it prints the command and
# stops with status 1. Other scripts source this file and call `setup`, with SETUP_YES=1 for --yes and
# SETUP_LINTS=1 where rustfmt and clippy are needed too.

RUST_MINOR=89 # the oldest Rust 1.x that builds the crate: rust-version in Cargo.toml

say() { printf '%s\n' "setup: $*" >&2; }

has() { command -v "$1" >/dev/null 2>&1; }

# new_enough 1.95.0+dfsg: whether a Rust version will do.
new_enough() {
    printf '%s\n' "$1" | awk -F'[.]' -v need="$RUST_MINOR" \
        '{ found = 1; ok = $1 + 0 > 1 || ($1 + 0 == 1 && $2 + 0 >= need) } END { exit !(found && ok) }'
}

cargo_ready() {
    # `cargo` may be rustup's stand-in, which fails while no toolchain is chosen.
    has cargo && version=$(cargo --version 2>/dev/null) && new_enough "$(printf '%s' "$version" | cut -d' ' -f2)"
}

# Toolchains that are installed but not in PATH: rustup's, and Ubuntu's versioned packages, newest first.
find_rust() {
    cargo_ready && return
    for bin in "${CARGO_HOME:-${HOME:-/root}/.cargo}/bin" $(ls -d /usr/lib/rust-1.*/bin 2>/dev/null | sort -t. -k2 -rn); do
        [ -x "$bin/cargo" ] || continue
        before=$PATH
        PATH=$bin:$PATH
        export PATH
        cargo_ready && return
        PATH=$before
    done
    return 1
}

lints_ready() {
    [ "${SETUP_LINTS:-0}" = 0 ] || { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1
}

# A driver is a manifest that the loader finds; the loader is libvulkan.
vulkan_ready() {
    [ "$(uname -s)" = Linux ] || return 0
    loader=
    if PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1 '; then
        loader=yes
    else
        for file in /usr/lib/libvulkan.so.1 /usr/lib64/libvulkan.so.1 /usr/lib/*/libvulkan.so.1; do
            [ -e "$file" ] && loader=yes
        done
    fi
    [ -n "$loader" ] || return 1
    named=${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}}
    if [ -n "$named" ]; then
        [ -e "${named%%:*}" ]
        return
    fi
    for file in /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json /usr/local/share/vulkan/icd.d/*.json; do
        [ -e "$file" ] && return 0
    done
    return 1
}

linker_ready() { has cc || has gcc || has clang; }

candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *//p' | grep -v '(none)'; }

# The packages of this distribution that hold a new enough Rust; `rustup` alone brings its own toolchains.
rust_packages() {
    if [ -n "$(candidate rustup)" ]; then
        echo rustup
        return
    fi
    # Debian 12 carries a current toolchain beside its old one, under names with -web.
    new_enough "$(candidate cargo)" && echo cargo rustc rustfmt rust-clippy && return
    new_enough "$(candidate cargo-web)" && echo cargo-web rustc-web rustfmt-web rust-web-clippy && return
    for name in $(apt-cache pkgnames cargo-1. 2>/dev/null | grep -E '^cargo-1\.[0-9]+$' | sort -t. -k2 -rn); do
        v=${name#cargo-}
        new_enough "$v" || break
        [ -n "$(candidate "$name")" ] || continue
        echo "$name" "rustc-$v" "rustfmt-$v" "rust-$v-clippy"
        return
    done
    return 1
}

# Sets `packages` to what apt-get should install.
list_packages() {
    packages=
    linker_ready || packages="$packages build-essential"
    vulkan_ready || packages="$packages mesa-vulkan-drivers libvulkan1"
    if ! has rustup && { ! find_rust || ! lints_ready; }; then
        rust=$(rust_packages) || return 1
        packages="$packages $rust"
    fi
}

all_ready() { linker_ready && vulkan_ready && find_rust && lints_ready; }

say_missing() {
    linker_ready || say "missing: a C compiler and linker"
    vulkan_ready || say "missing: the Vulkan loader (libvulkan.so.1) and a driver; Mesa's software driver will do"
    if ! find_rust; then
        say "missing: Rust 1.$RUST_MINOR or newer"
    elif ! lints_ready; then
        say "missing: rustfmt and clippy (cargo fmt, cargo clippy)"
    fi
}

no_rust_package() {
    say "no package that apt-get knows of holds Rust 1.$RUST_MINOR or newer."
    [ -z "$1" ] || say "Its lists may be old: run  sudo apt-get update  and this again."
    say "Otherwise install Rust with rustup (https://rustup.rs) and run this again."
    return 1
}

setup_with_apt() {
    root=
    [ "$(id -u)" = 0 ] || root=sudo
    if [ -n "$root" ] && { [ "${SETUP_YES:-0}" = 0 ] || ! has sudo; }; then
        say_missing
        list_packages || no_rust_package lists-may-be-old || return 1
        [ -z "$packages" ] || say "run:  sudo apt-get update && sudo apt-get install -y$packages"
        rust_toolchain_hint
        say "or run this again with --yes (through sudo) or as root."
        return 1
    fi
    $root apt-get update -q >&2 || say "apt-get update failed; trying the lists that are there"
    list_packages || no_rust_package "" || return 1
    if [ -n "$packages" ]; then
        say "installing$packages"
        # Words are meant to split: spaces come from the list alone.
        # shellcheck disable=SC2086
        $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages >&2 || return 1
    fi
    rust_toolchain
}

rust_toolchain_hint() {
    if has rustup || [ "${packages%rustup}" != "$packages" ]; then
        find_rust || say "then:  rustup default stable"
        lints_ready || say "then:  rustup component add rustfmt clippy"
    fi
}

# What rustup has to fetch: a toolchain, a newer one, or two components.
rust_toolchain() {
    has rustup || return 0
    if ! find_rust; then
        rustup toolchain install stable --profile default >&2 || return 1
        RUSTUP_TOOLCHAIN=stable
        export RUSTUP_TOOLCHAIN
        rustup default >/dev/null 2>&1 || rustup default stable >&2
    fi
    lints_ready || rustup component add rustfmt clippy >&2
}

setup() {
    all_ready && return 0
    if [ "$(uname -s)" = Linux ] && has apt-get; then
        setup_with_apt || return 1
        all_ready && return 0
        say_missing
        return 1
    fi
    # Without apt-get only rustup's own part can be done here.
    if linker_ready && vulkan_ready && has rustup && { [ "$(id -u)" = 0 ] || [ "${SETUP_YES:-0}" != 0 ]; }; then
        rust_toolchain && all_ready && return 0
    fi
    say_missing
    if [ "$(uname -s)" = Darwin ]; then
        say "run:  xcode-select --install && brew install rust  (or rustup, https://rustup.rs)"
    elif has dnf; then
        say "run:  sudo dnf install -y gcc rust cargo rustfmt clippy mesa-vulkan-drivers vulkan-loader"
    elif has pacman; then
        say "run:  sudo pacman -S --needed base-devel rust vulkan-icd-loader vulkan-swrast"
    fi
    return 1
}

case ${0##*/} in
setup.sh)
    case ${1:-} in
    --yes) SETUP_YES=1 ;;
    '') ;;
    *) say "unknown option: $1 (only --yes)"; exit 2 ;;
    esac
    setup || exit 1
    say "ready: $(cargo --version)"
    ;;
esac
