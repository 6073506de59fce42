"""Images and labels: two embedded data sets, and readers for the others.

Files hold plain bytes (the ``idx`` format of LeCun's MNIST pages, gzipped, the records of CIFAR-10, arrays of numpy) or images
(PNG, JPEG): no pickle is involved. What comes with the package, or from a known place, is checked against its hash before use.

Data sets:
    | ``digits``        1 797 images of 8x8, the UCI optical digits as shipped by scikit-learn; embedded
    | ``fashion-mini``  10 000 + 1 000 images of Fashion-MNIST, 28x28; embedded
    | ``fashion``       all 70 000 images of Fashion-MNIST, from a folder on this machine
    | ``cifar10-20``    20 test images of CIFAR-10, 3x32x32, from the installed package foolbox: for smoke tests
    | ``cifar10``, ``cifar100``            the official binary versions, or any first part of their files, from a folder
    | ``cifar10-c:CORRUPTION:SEVERITY``    10 000 corrupted test images of CIFAR-10, from a folder
    | ``restricted-imagenet:SIDE``         9 joint classes of ImageNet, resized, from its folders
    | ``folder:PATH``                      a reader's own images, a folder for each class
"""

from rdc.data.cifar import CIFAR10 as CIFAR10
from rdc.data.idx import DataError as DataError
from rdc.data.idx import parse_idx as parse_idx
from rdc.data.idx import read_idx as read_idx
from rdc.data.idx import write_idx as write_idx
from rdc.data.registry import ASSETS as ASSETS
from rdc.data.registry import SOURCES as SOURCES
from rdc.data.registry import Images as Images
from rdc.data.registry import check_name as check_name
from rdc.data.registry import load as load
from rdc.door import check_images as check_images
from rdc.door import check_labels as check_labels
