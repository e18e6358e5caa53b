#!/usr/bin/env python3
"""Stands for fatbinary in the CUDA 12 of the wheels: runs the assembler for architectures that nvcc 12.4 does not know.

nvcc hands over PTX alone. ``--assemble=75:80:...`` among its ``--fatbin-options`` says for which architectures there is
to be machine code; each gets it of the PTX that it can run.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(arguments: list[str]) -> int:
    option = "--assemble="
    wanted = [n for a in arguments if a.startswith(option) for n in a.removeprefix(option).split(":")]
    arguments = [a for a in arguments if not a.startswith(option)]
    cubins = []
    try:
        for argument in list(arguments):
            ptx = re.fullmatch(r"--image3=kind=ptx,sm=(\d+),file=(.*)", argument)
            for n in [n for n in wanted if ptx is not None and int(n) >= int(ptx[1])]:
                cubins.append(Path(f"{ptx[2]}.sm_{n}.cubin"))
                subprocess.run([HERE / "ptxas", f"-arch=sm_{n}", "-m64", ptx[2], "-o", cubins[-1]], check=True)
                arguments.append(f"--image3=kind=elf,sm={n},file={cubins[-1]}")
        return subprocess.run([HERE / "fatbinary.nvidia", *arguments], check=False).returncode
    except subprocess.CalledProcessError as error:
        return error.returncode
    finally:
        for cubin in cubins:
            cubin.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
