#!/usr/bin/env bash
# Measures other brokers and ours with the same load, one after the other on the same CPU and disk, and prints one
# table. Starts each server itself, on a free port of the loopback and in a fresh directory under the current one,
# waits until it answers and stops it. Nothing else should run meanwhile.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: perf/peers/run.sh [options] [-- LOAD FLAGS]

  --peers LIST         of ringtide,redis,nats,kafka [default: those that are installed, and ringtide]
  --durability LIST    of durable,usual [default: both]
  --workload LIST      names or files, as for ringtide bench [default: none, the load flags alone]
  --cpu N              of the servers [default: the first]
  --generator-cpu N    of the generator [default: the last]
  --out DIR            for the reports [default: target/peers]
  --install            install what is missing: redis-server and nats-server, a JRE and Kafka from Maven Central
  --help               this

Load flags are those of ringtide bench, such as --rate 5000 --duration 20. A run takes no longer than --duration says
and five minutes. NATS_SERVER and REDIS_SERVER name other binaries, KAFKA_LIBS a directory with Kafka's jars,
RINGTIDE_BIN and PEERS_BIN programs that were built before.
TEXT
}

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-}
redis_server=${REDIS_SERVER:-redis-server}
nats_server=${NATS_SERVER:-nats-server}
kafka_libs=${KAFKA_LIBS:-$HOME/.cache/ringtide-peers/kafka}
peers='' durabilities=durable,usual workloads='' cpu='' generator_cpu='' out=$root/target/peers install=no
# A server that does not answer within so many seconds, and one that does not stop.
patience=60
# How long a server that compiles itself is warmed up.
warm_seconds=20
# What a run may take beyond its schedule: preloading, draining, reading back.
most_seconds=300

say() { printf '%s\n' "$*" >&2; }
die() { say "run.sh: $*"; exit 1; }

while (($#)); do
    case $1 in
        --peers) peers=$2; shift 2 ;;
        --durability) durabilities=$2; shift 2 ;;
        --workload) workloads=$2; shift 2 ;;
        --cpu) cpu=$2; shift 2 ;;
        --generator-cpu) generator_cpu=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --install) install=yes; shift ;;
        --help) usage; exit ;;
        --) shift; break ;;
        *) usage >&2; die "unknown option $1" ;;
    esac
done
load=("$@")

# The CPUs that this process may use, one a line.
allowed_cpus() {
    taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | while IFS=- read -r first last; do
        seq "$first" "${last:-$first}"
    done
}
cpu=${cpu:-$(allowed_cpus | sed -n 1p)}
generator_cpu=${generator_cpu:-$(allowed_cpus | sed -n "\$p")}

# Installs what a peer needs, if that was asked for.
install_peer() {
    local as_root=()
    ((EUID == 0)) || as_root=(sudo)
    # Debian starts services that it installs; this says that it must not.
    apt() {
        "${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
            apt-get install -q -y --no-install-recommends "$@" >&2
    }
    case $1 in
        redis) apt redis-server ;;
        nats) apt nats-server ;;
        kafka)
            command -v java >/dev/null || apt default-jre-headless
            command -v mvn >/dev/null || apt maven
            mvn -q -B -f "$here/configs/kafka-pom.xml" dependency:copy-dependencies \
                -DincludeScope=runtime -DoutputDirectory="$kafka_libs" >&2
            ;;
    esac
}

has_peer() {
    case $1 in
        ringtide) true ;;
        redis) command -v "$redis_server" >/dev/null ;;
        nats) command -v "$nats_server" >/dev/null ;;
        kafka) command -v java >/dev/null && compgen -G "$kafka_libs/kafka_2*.jar" >/dev/null ;;
        *) die "there is no peer $1" ;;
    esac
}

# Those that were named must be there; without names, those that are there.
choose_peers() {
    local peer wanted=${peers:-ringtide,redis,nats,kafka}
    for peer in ${wanted//,/ }; do
        if ! has_peer "$peer" && [[ $install == yes ]]; then install_peer "$peer"; fi
        if has_peer "$peer"; then
            chosen+=("$peer")
        elif [[ -n $peers ]]; then
            die "$peer is not installed: see --install"
        else
            say "$peer is left out: it is not installed"
        fi
    done
}

# Ends the server that runs, by its process id; waits until it is gone.
server_pid=''
stop_server() {
    [[ -n $server_pid ]] || return 0
    local pid=$server_pid n
    server_pid=''
    kill -TERM "$pid" 2>/dev/null || true
    for ((n = 0; n < patience * 10; n++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

home=''
clean_up() {
    stop_server
    [[ -z $home ]] || rm -rf -- "$home"
    home=''
}
trap clean_up EXIT
trap 'exit 130' INT TERM

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        # Nobody answers there.
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}

kafka_java() { java -cp "$kafka_libs/*" -Dlog4j2.level=WARN "$@"; }

# Starts a peer in $home on $port; its process id is in server_pid.
start_server() {
    local peer=$1 durability=$2
    cat "$here/configs/$peer-$durability".* >"$home/config"
    case $peer in
        redis)
            printf 'bind 127.0.0.1\nport %s\ndir %s\n' "$port" "$home" >>"$home/config"
            taskset -c "$cpu" "$redis_server" "$home/config" >"$home/log" 2>&1 &
            ;;
        nats)
            taskset -c "$cpu" "$nats_server" -c "$home/config" -a 127.0.0.1 -p "$port" -sd "$home/data" \
                >"$home/log" 2>&1 &
            ;;
        kafka)
            local controller
            controller=$(free_port)
            {
                cat "$here/configs/kafka-common.properties"
                echo "listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller"
                echo "advertised.listeners=PLAINTEXT://127.0.0.1:$port"
                echo "controller.quorum.voters=1@127.0.0.1:$controller"
                echo "log.dirs=$home/data"
            } >>"$home/config"
            kafka_java kafka.tools.StorageTool format -t AAAAAAAAAAAAAAAAAAAAAQ -c "$home/config" \
                >"$home/log" 2>&1 || return 1
            taskset -c "$cpu" java -Xms1g -Xmx1g -cp "$kafka_libs/*" -Dlog4j2.level=WARN \
                kafka.Kafka "$home/config" >>"$home/log" 2>&1 &
            ;;
    esac
    server_pid=$!
}

# Waits until the server takes connections, and says what kind of server it is.
wait_for_server() {
    local n
    for ((n = 0; n < patience * 10; n++)); do
        kill -0 "$server_pid" 2>/dev/null || return 1
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return 0
        sleep 0.1
    done
    return 1
}

# Lets a server that compiles itself while it runs do so, with a load that nobody looks at.
warm_up() {
    local peer=$1 durability=$2
    [[ $peer == kafka ]] || return 0
    timeout --foreground "$most_seconds" "$program" "$peer" --server "127.0.0.1:$port" \
        --durability "$durability" --cpus "$generator_cpu" --size 256 --rate 2000 --duration "$warm_seconds" \
        >"$home/warm-up.log" 2>&1 || true
}

# The name of the block device that the current directory is on.
disk() {
    local name
    name=$(df --output=source . | tail -n 1)
    name=$(basename "$(readlink -f "$name")")
    [[ -e /sys/class/block/$name ]] && echo "$name"
}

# One run of one peer; its report is added to reports.
measure() {
    local peer=$1 durability=$2 workload=$3
    local report=$out/$peer-$durability-$(basename "${workload:-flags}" .toml).json
    local flags=(--cpus "$generator_cpu" --json "$report") rc=0
    [[ -z $workload ]] || flags+=(--workload "$workload")
    rm -f -- "$report"
    say "== $peer, $durability${workload:+, $workload}"
    if [[ $peer == ringtide ]]; then
        local acks=durable
        [[ $durability == durable ]] || acks=accepted
        timeout --foreground "$limit" "$ringtide" bench --no-limits --broker-cpus "$cpu" --acks "$acks" "${flags[@]}" \
            "${load[@]}" >"$report.log" 2>&1 || rc=$?
    else
        home=$(mktemp -d "$PWD/peers-$peer-XXXXXX")
        port=$(free_port)
        if ! start_server "$peer" "$durability" || ! wait_for_server; then
            say "$peer did not start as $durability; the end of its log:"
            tail -n 5 "$home/log" >&2 || true
            missing+=("$peer, $durability: the server did not start so")
            clean_up
            return 0
        fi
        warm_up "$peer" "$durability"
        local found
        found=$(disk) && flags+=(--disk "$found")
        timeout --foreground "$limit" "$program" "$peer" --server "127.0.0.1:$port" --pid "$server_pid" \
            --durability "$durability" "${flags[@]}" "${load[@]}" >"$report.log" 2>&1 || rc=$?
        clean_up
    fi
    if [[ -s $report ]]; then
        reports+=("$report")
    else
        say "no figures (exit $rc):"
        tail -n 3 "$report.log" >&2
        missing+=("$peer, $durability: $(tail -n 1 "$report.log")")
    fi
}

chosen=() reports=() missing=()
choose_peers
((${#chosen[@]})) || die 'there is nobody to measure'
mkdir -p "$out"
out=$(cd "$out" && pwd)

RINGTIDE_COMMIT=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
export RINGTIDE_COMMIT
program=${PEERS_BIN:-${target:-$here/target}/release/peers}
[[ -n ${PEERS_BIN:-} ]] || cargo build --locked --release --manifest-path "$here/Cargo.toml" >&2
ringtide=${RINGTIDE_BIN:-${target:-$root/target}/release/ringtide}
if [[ " ${chosen[*]} " == *' ringtide '* && -z ${RINGTIDE_BIN:-} ]]; then
    cargo build --locked --release --manifest-path "$root/Cargo.toml" >&2
fi

seconds=0
for ((n = 0; n < ${#load[@]}; n++)); do
    [[ ${load[n]} != --duration ]] || seconds=${load[n + 1]%.*}
done
limit=$((most_seconds + ${seconds:-0}))

IFS=, read -r -a named <<<"$workloads"
((${#named[@]})) || named=('')
for workload in "${named[@]}"; do
    for durability in ${durabilities//,/ }; do
        for peer in "${chosen[@]}"; do measure "$peer" "$durability" "$workload"; done
    done
done

((${#reports[@]} == 0)) || "$program" table "${reports[@]}"
for line in "${missing[@]}"; do echo "no figures of $line"; done
