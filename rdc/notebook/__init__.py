"""Notebooks: check the parameters and the claims of a chapter, paste a value into the book, run one with other parameters.

The rest of the package does not need these modules; only :func:`run_notebook` needs papermill and jupytext.
"""

from rdc.notebook.answers import close_to as close_to
from rdc.notebook.cells import check_parameters as check_parameters
from rdc.notebook.cells import claim as claim
from rdc.notebook.cells import glue as glue
from rdc.notebook.cells import needs as needs
from rdc.notebook.execute import NotebookError as NotebookError
from rdc.notebook.execute import run_notebook as run_notebook
from rdc.notebook.execute import write_notebook as write_notebook
from rdc.notebook.guided import attacks_table as attacks_table
from rdc.notebook.guided import differences_table as differences_table
from rdc.notebook.guided import samples_table as samples_table
from rdc.notebook.guided import setting as setting
from rdc.notebook.guided import stored_found as stored_found
from rdc.notebook.parameters import profiles as profiles
from rdc.notebook.stored import audits as audits
from rdc.notebook.stored import claims_table as claims_table
from rdc.notebook.stored import gradients_table as gradients_table
from rdc.notebook.stored import stored_cells as stored_cells
from rdc.notebook.stored import stored_rows as stored_rows
from rdc.notebook.stored import stored_table as stored_table
from rdc.notebook.tables import out_of as out_of
from rdc.notebook.tables import show_table as show_table
from rdc.notebook.tables import show_verdicts as show_verdicts
from rdc.notebook.tables import spoken as spoken
