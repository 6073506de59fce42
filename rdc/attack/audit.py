"""The former name of :mod:`rdc.evaluate.audit`."""

from rdc.evaluate.audit import Report as Report
from rdc.evaluate.audit import audit as audit
