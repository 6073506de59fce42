"""How far does the nearest neighbour in pixels carry, and how many test images does it keep with a proof?"""

from rdc.runs.cell import Row

ROWS = (Row("1-nn", n=512, block=32, task="nearest", about={"model": "1-NN"}),)
