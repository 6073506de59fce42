"""How many test images that it has not stored does the optimal classifier keep, and how many does it keep with a proof?"""

from rdc.runs.cell import Row

BALLS = (("Linf", "8/255"), ("L2", "0.5"))

ROWS = tuple(
    Row("optimal", {}, "pgd", {"steps": 20, "norm": norm, "eps": eps}, n=96, block=32, about={"model": "optimal", "norm": norm})
    for norm, eps in BALLS
)
