#!/usr/bin/env bash
# Installs ClaudeFS on this machine: the programs, and the unit that runs a storage node.
#
#   scripts/install.sh [--from DIR] [--prefix DIR]      programs from DIR (target/release) into PREFIX (/usr)
#
# DESTDIR names another root than /, for packages; systemd is told only without it. Nothing is started: see
# docs/operations.md, "As a service".
#
# The other scripts read this file for `install_missing COMMAND:PACKAGE ...`, which installs Debian packages that
# provide missing commands.

install_missing() {
    local pair packages=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
    done
    install_packages ${packages[@]+"${packages[@]}"}
}

install_packages() {
    if (($# == 0)); then
        return
    fi
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "$0: missing packages, install them first: $*" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    (
        # A package may bring a service, on a port that a test wants (prometheus: 9090). None is started now.
        policy=/usr/sbin/policy-rc.d
        if [[ ! -e $policy ]]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
    )
}

install_claudefs() {
    set -euo pipefail
    local from=target/release prefix=/usr root=${DESTDIR:-} program
    while (($#)); do
        case $1 in
            --from) from=${2:?--from wants a directory}; shift 2 ;;
            --prefix) prefix=${2:?--prefix wants a directory}; shift 2 ;;
            *) sed -n '2,/^$/p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
        esac
    done
    local here
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    for program in cfs cfsctl blockd; do
        if [[ ! -x $from/$program ]]; then
            echo "$0: there is no $from/$program: build it first, \`cargo build --release --workspace\`" >&2
            exit 1
        fi
    done
    for program in cfs cfsctl blockd; do
        # Beside and renamed: one that runs is not written to.
        install -D -m 755 "$from/$program" "$root$prefix/bin/$program.new"
        mv "$root$prefix/bin/$program.new" "$root$prefix/bin/$program"
    done
    local unit=$root/usr/lib/systemd/system/claudefs.service
    install -D -m 644 "$here/config/systemd/claudefs.service" "$unit"
    sed -i "s|/usr/bin/cfs|$prefix/bin/cfs|" "$unit"
    install -d -m 755 "$root/etc/claudefs"
    if [[ -z $root ]] && command -v systemctl >/dev/null && [[ -d /run/systemd/system ]]; then
        systemctl daemon-reload
    fi
    echo "installed in $root$prefix/bin, and $unit"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    install_claudefs "$@"
fi
