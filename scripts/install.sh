# For the other scripts: installs Debian packages that provide missing commands.
#
#   install_missing COMMAND:PACKAGE ...

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
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
}
