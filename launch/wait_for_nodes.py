"""launch/wait_for_nodes.py HOST:PORT N SECONDS: waits until N nodes of the cluster are alive. Exit code 0 or 1."""

import logging
import sys
import time


def main(address: str, wanted: int, seconds: float) -> int:
    """Returns 0 once `wanted` nodes are alive, 1 if there are fewer after `seconds`."""
    import ray

    deadline = time.monotonic() + seconds
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    while True:
        alive = sum(bool(node["Alive"]) for node in ray.nodes())
        if alive >= wanted:
            return 0
        if time.monotonic() >= deadline:
            print(f"{alive} of {wanted} nodes after {seconds:.0f} s", file=sys.stderr)
            return 1
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
