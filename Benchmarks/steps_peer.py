"""Runs workflows of trivial steps in DBOS or LangGraph, and prints the steps a second.

Usage: steps_peer.py <dbos-postgres|dbos-sqlite|langgraph-sqlite> <PostgreSQL port> <folder> <workflows at once> <turns each> <steps>
"""

import logging
import os
import sys
import tempfile
import threading
import time

peer, port, folder, agents, turns, steps = sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:7])
# They are slower by far: fewer turns give the same rate, and an end within seconds.
turns = max(1, min(turns, 128 // agents))


def timed(run_turn):
    """Runs `turns` turns for each agent, all agents at once, and prints the rate."""
    run_turn("warm", 0)
    threads = [threading.Thread(target=lambda a=a: [run_turn(a, t) for t in range(turns)]) for a in range(agents)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(agents * turns * steps / (time.monotonic() - start), flush=True)


def dbos(url):
    from dbos import DBOS, DBOSConfig

    logging.disable(logging.CRITICAL)
    DBOS(config=DBOSConfig(name="bench", system_database_url=url, run_admin_server=False, log_level="CRITICAL"))

    @DBOS.step()
    def step(index):
        return index

    @DBOS.workflow()
    def turn():
        return sum(step(index) for index in range(steps))

    DBOS.launch()
    timed(lambda agent, number: turn())


def langgraph(path):
    import sqlite3
    from typing import TypedDict

    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        sum: int

    graph = StateGraph(State)
    names = [f"step{index}" for index in range(steps)]
    for name in names:
        graph.add_node(name, lambda state: {"sum": state["sum"] + 1})
    for before, after in zip([START] + names, names + [END]):
        graph.add_edge(before, after)
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    app = graph.compile(checkpointer=SqliteSaver(connection))

    def run_turn(agent, number):
        app.invoke({"sum": 0}, {"configurable": {"thread_id": f"{agent}-{number}"}}, durability="sync")

    timed(run_turn)


path = os.path.join(tempfile.mkdtemp(dir=folder), "peer.sqlite")
if peer == "dbos-postgres":
    dbos(f"postgresql://postgres@127.0.0.1:{port}/dbos_bench")
elif peer == "dbos-sqlite":
    dbos(f"sqlite:///{path}")
else:
    langgraph(path)
sys.stdout.flush()
os._exit(0)  # DBOS keeps threads that poll.
