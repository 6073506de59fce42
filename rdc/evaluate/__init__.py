"""How often a classifier is right, clean and under attack, and whether the number is to be believed."""

from rdc.evaluate.protocols import PROTOCOLS as PROTOCOLS
from rdc.evaluate.robustness import Accuracy as Accuracy
from rdc.evaluate.robustness import accuracy as accuracy
from rdc.evaluate.robustness import attack_table as attack_table
from rdc.evaluate.robustness import predict as predict
from rdc.evaluate.robustness import protocols as protocols
from rdc.evaluate.robustness import read_rows as read_rows
from rdc.evaluate.robustness import robust_accuracy as robust_accuracy
from rdc.evaluate.wrap import wrap as wrap
