# How many durable steps a second: turns of 10 steps that do nothing, for one agent and for 64 at once?
# Beside a PostgreSQL row and commit a step, which is the floor of what keeps its steps in a database, and beside DBOS and LangGraph,
# which do: DBOS on PostgreSQL and on SQLite, LangGraph with its SQLite saver that writes before it goes on (durability "sync").

start_parley "$bin/parley-bench-agents"
if [ "$tiny" ]; then
    "$bin/parley-load" steps --parley "$parley" --rounds 1 --turns 2 --agents 4
    return
fi
start_postgres
need_python_peers
peers=
for peer in dbos-postgres dbos-sqlite langgraph-sqlite; do
    peers+="$peer=$python $root/Benchmarks/steps_peer.py $peer ${postgres%/*} $benchmark_folder;"
done
"$bin/parley-load" steps --parley "$parley" --postgres "$postgres" --peers "${peers%;}" --rounds "${ROUNDS:-3}"
