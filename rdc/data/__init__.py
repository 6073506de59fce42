"""Images and labels: two embedded data sets, and readers for the others.

Files are in the plain ``idx`` format of LeCun's MNIST pages (a header and raw bytes, gzipped) or PNG: no pickle is
involved, and everything is checked against its size and a SHA-256 before use.

Data sets:
    | ``digits``        1 797 images of 8x8, the UCI optical digits as shipped by scikit-learn; embedded
    | ``fashion-mini``  10 000 + 1 000 images of Fashion-MNIST, 28x28; embedded
    | ``fashion``       all 70 000 images of Fashion-MNIST, from a folder on this machine
    | ``cifar10-20``    20 test images of CIFAR-10, 3x32x32, from the installed package foolbox: for smoke tests
"""

from rdc.data.idx import DataError as DataError
from rdc.data.idx import parse_idx as parse_idx
from rdc.data.idx import read_idx as read_idx
from rdc.data.idx import write_idx as write_idx
from rdc.data.registry import ASSETS as ASSETS
from rdc.data.registry import CIFAR10 as CIFAR10
from rdc.data.registry import SOURCES as SOURCES
from rdc.data.registry import Images as Images
from rdc.data.registry import load as load
from rdc.door import check_images as check_images
from rdc.door import check_labels as check_labels
