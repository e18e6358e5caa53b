"""Forks while threads are within eqk's caches and kept memory; the child, which has none of them, calls the same op.

python forked.py COUNT: prints how many children ended, of COUNT at most: none is made after one that took SECONDS.
"""

import os
import signal
import sys
import threading

import torch

import eqk

SECONDS = 20
ROWS = 1 << 15  # results of 1 MiB, from which on memory is kept
# Long, so that much of a call is spent where its text is looked up.
TEXT = "8x0e * 1x0e -> 8x0e [mul_ir,mul_ir,mul_ir] none {" + "; ".join(["0 0 0 uvu - 1.0"] * 40_000) + "}"


def call(x, text=TEXT):
    return torch.ops.eqk.tensor_product(x, x[:, :1], None, text)


def main(count: int) -> int:
    torch.set_num_threads(1)
    eqk.keep_memory(1 << 21)
    few, many = torch.ones(0, 8), torch.ones(ROWS, 8)
    short = TEXT.replace("; 0 0 0 uvu - 1.0", "")
    call(many, short)
    stop = threading.Event()

    def look_up():
        while not stop.is_set():
            call(few)

    def allocate():
        while not stop.is_set():
            del [call(many, short) for _ in range(4)][:]

    threads = [threading.Thread(target=f) for f in (look_up, look_up, allocate, allocate)]
    for thread in threads:
        thread.start()
    ended = 0
    for _ in range(count):
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            call(few)
            call(few, short.replace("1.0", "2.0"))
            assert torch.equal(call(many, short), many)
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            break
        ended += 1
    stop.set()
    for thread in threads:
        thread.join()
    return ended


if __name__ == "__main__":
    print(main(int(sys.argv[1])))
