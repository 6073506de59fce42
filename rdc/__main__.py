"""``python -m rdc`` is the command ``rdc``."""

from rdc.cli import main

main()
